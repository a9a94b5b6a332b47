"""The run that monitors evaluate, as plain values: monitors know neither its trainer nor its method."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repa_eval.data.readers.statistics import Statistics
from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.diffusion.model import Conditioning, DiffusionModel
from repa_eval.diffusion.timesteps import TIMESTEPS
from repa_eval.evaluation.reference_features import ReferenceCache
from repa_eval.features.capture import Capture, ClassTokens
from repa_eval.interfaces.extractor import Extractor, load_extractor
from repa_eval.interfaces.image_source import ImageSource
from repa_eval.interfaces.images import Images, held_out_images, load_data
from repa_eval.interfaces.sampler import SamplerSettings
from repa_eval.interfaces.teacher import Teacher, TeacherClassTokens, load_teacher
from repa_eval.monitors.shared.samples import draw, keep_newest
from repa_eval.probes.splits import Splits, probe_splits
from repa_eval.runtime.distributed import ALONE, Share
from repa_eval.sampling.sample_files import save_npz

METRICS = ("fd", "inception_score", "precision_recall")  # of sample quality


@dataclass(frozen=True, kw_only=True)
class NetworkFacts:
    """What monitors need to know of a network before they see it: the facts that DiffusionModel has under these names.

    sampler: name of the sampler of all evaluations; "": the model's default, which the protocol does not name.
    record: the protocol entries of the network (`model_record`).
    """

    depth: int
    sampler: str
    conditioning: Conditioning
    has_class_token: bool
    record: Mapping[str, Any]
    has_null_label: bool = True

    @property
    def draws_snippets(self) -> bool:
        """Whether samples are conditioned on snippets of a memory bank."""
        return self.conditioning == "snippet"


@dataclass(frozen=True, kw_only=True)
class SampleRound:
    """A number of samples, and the ODE steps that each of them takes."""

    num_samples: int
    num_steps: int


@dataclass(frozen=True, kw_only=True)
class EvaluatedRun:
    """The run that is evaluated, and where to compute.

    folder: the run folder; its name is the column `run`. system, method, train_seed: columns of every row.
    weights: "ema" or "online", those of the models that monitors are given.
    data, split: what the model was trained on. last_step: the step at which training ends, None where nobody knows it.
    generates: whether images can be generated from the model. bank: its memory bank in words, for the protocol.
    extractor: name of the network whose features sample quality is measured on.
    regular: the samples drawn at every evaluation; final: those drawn in addition after the last step, if any.
    keep_samples: the regular samples of that many of the newest steps stay in RUN/samples/.
    teachers: names of the encoders that the run was trained with; teacher_weights: a file that replaces the weights of
    the first one. further_teachers: names of encoders that it is compared with besides; they come first.
    batch_size: images per forward pass. processes: those among which shared monitors divide their work.
    """

    folder: Path
    system: str | None
    method: str | None
    train_seed: int | None
    weights: str = "ema"
    data: str
    split: str
    last_step: int | None
    network: NetworkFacts
    interpolant: Interpolant = Interpolant()
    generates: bool = True
    bank: str = ""
    extractor: str
    regular: SampleRound
    final: SampleRound | None = None
    keep_samples: int = 0
    teachers: tuple[str, ...] = ()
    teacher_weights: str | None = None
    further_teachers: tuple[str, ...] = ()
    batch_size: int = 256
    device: str = "cpu"
    processes: Share = ALONE

    @property
    def name(self) -> str:
        """The name of the run in tables: that of its folder."""
        return self.folder.resolve().name

    def columns(self, step: int | None) -> dict[str, Any]:
        """Return the columns of a row that name the model at a step."""
        return {
            "run": self.name,
            "system": self.system,
            "method": self.method,
            "step": step,
            "weights": self.weights,
            "train_seed": self.train_seed,
        }

    def is_last(self, step: int) -> bool:
        """Return whether training ends at this step."""
        return self.last_step is not None and step >= self.last_step

    def picture(self, kind: str, step: int) -> Path:
        """Return the file RUN/media/<kind>-<step>.png, which the report shows."""
        return self.folder / "media" / f"{kind}-{step:07d}.png"

    def rounds(self, step: int) -> list[SampleRound]:
        """Return the rounds of samples that are drawn at a step: the regular one, after the last step the final one."""
        further = self.final is not None and self.is_last(step) and self.final != self.regular
        return [self.regular, self.final] if further and self.final else [self.regular]

    @property
    def layers(self) -> Sequence[int]:
        """The blocks that are measured, 1-based: all of them."""
        return range(1, self.network.depth + 1)

    @property
    def timesteps(self) -> Sequence[float]:
        """The times at which hidden states are measured."""
        return TIMESTEPS

    @property
    def probes(self) -> bool:
        """Whether the data has labels that probes can be fitted to."""
        return True

    def images(self, usual: int) -> ImageSource:
        """Return images that training never saw, the `usual` number of them unless the run has its own."""
        return held_out_images(self.data, usual)

    @functools.cached_property
    def probe_splits(self) -> Splits:
        """The images that probes are fitted to and scored on."""
        return probe_splits(self.data)

    @functools.cached_property
    def reference(self) -> ImageSource | Statistics:
        """What samples are compared with."""
        return load_data(self.data, "reference")

    @functools.cached_property
    def judges(self) -> list[tuple[Extractor, Sequence[str]]]:
        """The extractors that measure samples, on the device, and the metrics of each."""
        return [(load_extractor(self.extractor).to(self.device), METRICS), (load_extractor("pixel_pca"), ("fd",))]

    @property
    def reference_cache(self) -> ReferenceCache | None:
        """Where the reference's features are kept for later calls."""
        return None

    def draw(self, model: DiffusionModel, count: int, sampler: SamplerSettings, processes: Share = ALONE) -> Images:
        """Return samples of a model in memory; see `samples.draw`."""
        return draw(model, count, sampler, processes, batch_size=self.batch_size)

    @contextlib.contextmanager
    def samples(self, step: int, model: DiffusionModel, samples: SampleRound) -> Iterator[ImageSource]:
        """Yield the samples of a round at a step; the regular ones of the newest steps stay as `keep_samples` says."""
        sampler = self.sampler(samples.num_steps)
        images = self.draw(model, samples.num_samples, sampler, self.processes)
        if self.keep_samples and samples is self.regular and self.processes.first:
            save_npz(self.sample_file(step), images.images, images.labels, self.full_sample_record(step, sampler))
            keep_newest(self.folder / "samples", self.keep_samples)
        yield images

    def sample_file(self, step: int) -> Path:
        """Return where samples of a step stay."""
        return self.folder / "samples" / f"{step:07d}.npz"

    def full_sample_record(self, step: int, sampler: SamplerSettings) -> dict[str, Any]:
        """Return the record beside samples that stay."""
        origin = {"data": self.data, "extractor": self.extractor}
        return {**self.columns(step), **origin, **self.sample_record(sampler)}

    def sampler(self, num_steps: int, **more: Any) -> SamplerSettings:
        """Return the settings of the sampler that the run is evaluated with, by default REPA's ODE by Euler steps."""
        return SamplerSettings(num_steps=num_steps, interpolant=self.interpolant, family=self.network.sampler, **more)

    def sample_record(self, sampler: SamplerSettings) -> dict[str, Any]:
        """Return the protocol entries of samples of the model."""
        condition = {"labels": "snippets", "bank": self.bank} if self.network.draws_snippets else {}
        return {**sampler.record(), **condition, "weights": self.weights, "dtype": "float32"}

    @property
    def capture(self) -> Capture:
        """How hidden states of the model are taken."""
        return Capture(interpolant=self.interpolant, class_tokens=self.class_tokens)

    @functools.cached_property
    def class_tokens(self) -> ClassTokens | None:
        """The function from images to the clean class tokens that the model reads; None where it reads none."""
        if not self.network.has_class_token:
            return None
        return TeacherClassTokens(self._load_teacher(self.teachers[0]))

    @functools.cached_property
    def reference_teachers(self) -> list[Teacher]:
        """The teachers that hidden states are compared with, on the device: further ones, then the run's own."""
        return [self._load_teacher(name) for name in self.teacher_names]

    @property
    def has_teachers(self) -> bool:
        """Whether there are `reference_teachers`."""
        return bool(self.teacher_names)

    @property
    def teacher_names(self) -> list[str]:
        """The names of `reference_teachers`."""
        return list(dict.fromkeys([*self.further_teachers, *self.teachers]))

    def _load_teacher(self, name: str) -> Teacher:
        """Return a teacher on the device: the run's first one with the weights that the run was trained with."""
        weights = self.teacher_weights if name in self.teachers[:1] else None
        return load_teacher(name, weights).to(self.device)
