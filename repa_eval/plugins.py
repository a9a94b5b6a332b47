"""What a plug-in imports: the decorators that register each kind, and the contracts that they register.

A plug-in is a Python file, a package or a module. `--plugin ./my_plugin.py` loads it, and so do the environment
variable REPA_EVAL_PLUGINS and an entry point of the group `repa_eval.plugins`. Every name is imported when it is first
used, so that a plug-in that brings only a metric imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repa_eval.checkpoints.shared.recognise import from_state as from_state
    from repa_eval.config import option as option
    from repa_eval.diffusion.guidance import Guidance as Guidance
    from repa_eval.diffusion.guidance import guided_velocity as guided_velocity
    from repa_eval.diffusion.interpolant import Interpolant as Interpolant
    from repa_eval.diffusion.model import DiffusionModel as DiffusionModel
    from repa_eval.diffusion.model import check_taps as check_taps
    from repa_eval.errors import Failure as Failure
    from repa_eval.errors import UserError as UserError
    from repa_eval.interfaces.architecture import Architecture as Architecture
    from repa_eval.interfaces.architecture import Shapes as Shapes
    from repa_eval.interfaces.architecture import model as model
    from repa_eval.interfaces.checkpoint_layout import Checkpoint as Checkpoint
    from repa_eval.interfaces.checkpoint_layout import Request as Request
    from repa_eval.interfaces.checkpoint_layout import checkpoint_layout as checkpoint_layout
    from repa_eval.interfaces.extractor import Extractor as Extractor
    from repa_eval.interfaces.extractor import Features as Features
    from repa_eval.interfaces.extractor import extractor as extractor
    from repa_eval.interfaces.image_source import ImageSource as ImageSource
    from repa_eval.interfaces.image_source import LatentScale as LatentScale
    from repa_eval.interfaces.image_source import Samples as Samples
    from repa_eval.interfaces.images import Images as Images
    from repa_eval.interfaces.images import data as data
    from repa_eval.interfaces.images import load_data as load_data
    from repa_eval.interfaces.images import to_signed as to_signed
    from repa_eval.interfaces.method import Batch as Batch
    from repa_eval.interfaces.method import Method as Method
    from repa_eval.interfaces.method import Stage as Stage
    from repa_eval.interfaces.method import method as method
    from repa_eval.interfaces.metric import alignment_metric as alignment_metric
    from repa_eval.interfaces.metric import sample_metric as sample_metric
    from repa_eval.interfaces.metric import spatial_metric as spatial_metric
    from repa_eval.interfaces.monitor import Monitor as Monitor
    from repa_eval.interfaces.monitor import monitor as monitor
    from repa_eval.interfaces.projector import projector as projector
    from repa_eval.interfaces.sampler import SamplerSettings as SamplerSettings
    from repa_eval.interfaces.sampler import sampler as sampler
    from repa_eval.interfaces.section import section as section
    from repa_eval.interfaces.teacher import Teacher as Teacher
    from repa_eval.interfaces.teacher import Tokens as Tokens
    from repa_eval.interfaces.teacher import teacher as teacher
    from repa_eval.metrics.shared.checks import undefined as undefined
    from repa_eval.metrics.shared.moments import Moments as Moments
    from repa_eval.metrics.shared.prepared import Prepared as Prepared
    from repa_eval.metrics.shared.prepared import paired as paired
    from repa_eval.monitors.shared.run import EvaluatedRun as EvaluatedRun
    from repa_eval.plugin_files.loading import Plugin as Plugin
    from repa_eval.plugin_files.loading import load as load
    from repa_eval.reports.page import Page as Page
    from repa_eval.results import Row as Row
    from repa_eval.results import make_row as make_row
    from repa_eval.runtime.hashing import digest_module as digest_module
    from repa_eval.runtime.seeding import normal as normal
    from repa_eval.runtime.seeding import uniform as uniform
    from repa_eval.train.alignment_schedule import AlignmentSchedule as AlignmentSchedule
    from repa_eval.train.losses import cosine_alignment as cosine_alignment
    from repa_eval.train.losses import denoising_draws as denoising_draws
    from repa_eval.train.losses import drop_labels as drop_labels
    from repa_eval.train.losses import velocity_loss as velocity_loss

# module -> the names that it brings; the same as above, for when the program runs
MODULES: dict[str, tuple[str, ...]] = {
    "checkpoints.shared.recognise": ("from_state",),
    "config": ("option",),
    "diffusion.guidance": ("Guidance", "guided_velocity"),
    "diffusion.interpolant": ("Interpolant",),
    "diffusion.model": ("DiffusionModel", "check_taps"),
    "errors": ("Failure", "UserError"),
    "interfaces.architecture": ("Architecture", "Shapes", "model"),
    "interfaces.checkpoint_layout": ("Checkpoint", "Request", "checkpoint_layout"),
    "interfaces.extractor": ("Extractor", "Features", "extractor"),
    "interfaces.image_source": ("ImageSource", "LatentScale", "Samples"),
    "interfaces.images": ("Images", "data", "load_data", "to_signed"),
    "interfaces.method": ("Batch", "Method", "Stage", "method"),
    "interfaces.metric": ("alignment_metric", "sample_metric", "spatial_metric"),
    "interfaces.monitor": ("Monitor", "monitor"),
    "interfaces.projector": ("projector",),
    "interfaces.sampler": ("SamplerSettings", "sampler"),
    "interfaces.section": ("section",),
    "interfaces.teacher": ("Teacher", "Tokens", "teacher"),
    "metrics.shared.checks": ("undefined",),
    "metrics.shared.moments": ("Moments",),
    "metrics.shared.prepared": ("Prepared", "paired"),
    "monitors.shared.run": ("EvaluatedRun",),
    "plugin_files.loading": ("Plugin", "load"),
    "reports.page": ("Page",),
    "results": ("Row", "make_row"),
    "runtime.hashing": ("digest_module",),
    "runtime.seeding": ("normal", "uniform"),
    "train.alignment_schedule": ("AlignmentSchedule",),
    "train.losses": ("cosine_alignment", "denoising_draws", "drop_labels", "velocity_loss"),
}
_MODULE_OF = {name: f"repa_eval.{module}" for module, names in MODULES.items() for name in names}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import a name of the table at its first use."""
        if name not in _MODULE_OF:
            raise AttributeError(f"repa_eval.plugins has no {name!r}; it has {', '.join(sorted(_MODULE_OF))}")
        value = getattr(importlib.import_module(_MODULE_OF[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(_MODULE_OF)
