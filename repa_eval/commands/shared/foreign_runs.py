"""Runs that `sweep` measures as the command line says: those of other trainers, and own ones with options of theirs."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repa_eval.commands.shared.checkpoint import (
    block_numbers,
    class_token_teacher,
    data_of,
    measurable,
    teachers_of,
)
from repa_eval.commands.shared.measured_data import encoded, open_measured, reading_of
from repa_eval.commands.shared.quality_options import QualityOptions
from repa_eval.commands.shared.sample_options import SamplerFlags, SamplerOptions, settings_for
from repa_eval.console.numbers import Whole
from repa_eval.console.option_groups import flag
from repa_eval.console.options import ComputeOptions, DataOptions, GridOptions, LoadingOptions
from repa_eval.errors import UserError, first_line
from repa_eval.runtime.run_record import read_record, write_record

if TYPE_CHECKING:
    from repa_eval.features.capture import Capture
    from repa_eval.monitors.shared.foreign import ForeignRun, Measured
    from repa_eval.runtime.distributed import Share

METRICS = ("fd", "sfd", "inception_score", "precision_recall")


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """How many samples of each checkpoint are measured, and by what."""

    num_samples: int = flag(
        "--num-samples",
        type=Whole(0),
        default=50_000,
        help="samples of each checkpoint; 0: no sampling, so no sample quality",
    )
    reference: str | None = flag(
        "--reference", metavar="PATH|NAME", help="images, a file of statistics or data by name, for sample quality"
    )
    extractor: str = flag("--extractor", metavar="NAME", default="inception", help="network that extracts features")
    extractor_weights: Path | None = flag(
        "--extractor-weights",
        type=click.Path(path_type=Path),
        help="load the extractor's weights from this file",
    )


@dataclass(frozen=True, kw_only=True)
class ForeignOptions:
    """All that describes how such a run is measured."""

    loading: LoadingOptions
    grid: GridOptions
    data: DataOptions
    test_data: str | None
    samples: SampleOptions
    sampler: SamplerOptions
    flags: SamplerFlags
    compute: ComputeOptions
    keep_samples: int


def foreign_run(opened: Any, folder: Path, options: ForeignOptions, processes: Share, cache: Any) -> ForeignRun:
    """Return the run that a checkpoint is of, which is measured into `folder`; everything is opened and checked.

    UserError or Failure for whatever would stop a measurement: data that do not fit, a missing teacher, VAE, extractor
    or reference.
    """
    from repa_eval.features.hidden_states import model_record
    from repa_eval.monitors.shared.foreign import ForeignRun
    from repa_eval.monitors.shared.run import NetworkFacts, SampleRound

    model, samples = measurable(opened).to(processes.device), options.samples
    measured = _measured(opened, model, options, processes, cache)
    columns = opened.columns()
    return ForeignRun(
        folder=folder,
        system=columns["system"],
        method=columns["method"],
        train_seed=columns["train_seed"],
        weights=opened.weights,
        data=measured.images.name,
        split=measured.images.split,
        last_step=None,
        network=NetworkFacts(
            depth=model.depth,
            sampler="",
            conditioning=model.conditioning,
            has_class_token=model.has_class_token,
            record=model_record(model),
            has_null_label=model.has_null_label,
        ),
        interpolant=measured.capture.interpolant,
        generates=samples.num_samples > 0,
        bank="the checkpoint's",
        extractor=samples.extractor,
        regular=SampleRound(num_samples=samples.num_samples, num_steps=options.sampler.num_steps),
        keep_samples=options.keep_samples,
        batch_size=options.compute.batch_size,
        device=processes.device,
        processes=processes,
        measured=measured,
    )


def record_run(run: ForeignRun, opened: Any, source: Path) -> None:
    """Write run.json of a run that is measured from another folder, for the report; what is there stays."""
    if (read_record(run.folder) or {}).get("status") is not None:  # a trainer of ours writes it
        return
    record = {
        "run": run.name,
        "method": run.method,
        "origin": "another trainer",
        "description": f"{opened.model_name}, {' or '.join(opened.systems)}, of another trainer",
        "teacher": ",".join(teacher.name for teacher in opened.teachers) or None,
        "aligned_layer": opened.aligned_layer,
        "checkpoints": str(source),
        "measured_by": shlex.join(["repa-eval", *sys.argv[1:]]),
    }
    if read_record(run.folder) != record:
        write_record(run.folder, record)


def _measured(opened: Any, model: Any, options: ForeignOptions, processes: Share, cache: Any) -> Measured:
    from repa_eval.features.preflight import checked_input, warn_of_scale
    from repa_eval.monitors.shared.foreign import Measured
    from repa_eval.sampling.vae import open_vae

    data, device = options.data, processes.device
    name, layers = data_of(opened, options.grid.data_name), tuple(block_numbers(options.grid.layers, opened))
    vae = None if data.vae is None else open_vae(data.vae, device)
    images = open_measured(name, model, data, device=device, vae=vae)
    loaded = {teacher: teacher.load().to(device) for teacher in _teachers(opened, options.grid)}
    for teacher in loaded.values():
        teacher(images.pixels([0]).to(device))  # whether it reads these images
    capture = _capture(opened, options, loaded)
    checked_input(model, images, capture)
    warn_of_scale(model, images, capture)
    compared = teachers_of(opened, options.grid.teacher_name, options.grid.weights)
    if not compared and options.grid.teacher_name is None:
        raise UserError(
            f"{opened.path} records no teacher: name one with --teacher, or leave alignment out with --teacher none"
        )
    return Measured(
        images=images,
        splits=_splits(name, model, options, capture, vae, processes),
        capture=capture,
        teachers=tuple(loaded[teacher] for teacher in compared),
        layers=layers,
        timesteps=tuple(options.grid.times()),
        cache=cache,
        model_shape=tuple(model.image_shape),
        **_sampling(model, opened, options, capture, vae, device),
    )


def _teachers(opened: Any, grid: GridOptions) -> list[Any]:
    """Return every RecordedTeacher that is needed, once."""
    class_teacher = class_token_teacher(opened, grid.teacher_name, grid.weights)
    compared = teachers_of(opened, grid.teacher_name, grid.weights)
    return list(dict.fromkeys([*compared, *([] if class_teacher is None else [class_teacher])]))


def _capture(opened: Any, options: ForeignOptions, loaded: Mapping[Any, Any]) -> Capture:
    from repa_eval.config import from_dict
    from repa_eval.diffusion.interpolant import Interpolant
    from repa_eval.features.capture import Capture
    from repa_eval.interfaces.teacher import TeacherClassTokens

    class_teacher = class_token_teacher(opened, options.grid.teacher_name, options.grid.weights)
    return Capture(
        interpolant=from_dict(Interpolant(), opened.option("interpolant") or {}),
        seed=options.compute.seed,
        class_tokens=None if class_teacher is None else TeacherClassTokens(loaded[class_teacher]),
        latents=reading_of(opened, options.data),
        batch_size=options.compute.batch_size,
    )


def _splits(name: str, model: Any, options: ForeignOptions, capture: Capture, vae: Any, processes: Share) -> Any:
    """Return the images of the probes; None, with a line for the user, where the data cannot be probed."""
    from repa_eval.features.preflight import checked_input
    from repa_eval.probes.splits import probe_splits

    seed, resolution = options.compute.seed, options.data.resolution
    try:
        splits = probe_splits(name, options.test_data, resolution=resolution, seed=seed)
        splits.check()
    except UserError as error:
        if options.test_data is not None:
            raise
        if processes.first:
            click.echo(f"note: no probes: {first_line(error)}", err=True)
        return None
    splits = splits.mapped(lambda images: encoded(images, model, options.data, device=processes.device, vae=vae))
    for images in splits.parts().values():
        checked_input(model, images, capture)
    return splits


def _sampling(
    model: Any, opened: Any, options: ForeignOptions, capture: Capture, vae: Any, device: str
) -> dict[str, Any]:
    """Return the fields of Measured that concern samples, after a look at what the extractor is given."""
    import torch

    from repa_eval.sampling.generate import bank_for
    from repa_eval.sampling.vae import VaeDecoder, decoder_for

    samples = options.samples
    settings = settings_for(model, opened, options.sampler, options.flags, options.compute.seed)
    fields: dict[str, Any] = {"sampling": settings, "reference": None, "extractors": (), "decoder": None}
    if not samples.num_samples:
        return {**fields, "sample_shape": model.image_shape}
    if samples.reference is None:
        raise UserError(
            "samples are compared with real images: name them with --reference, or leave samples out with "
            "--num-samples 0"
        )
    if samples.num_samples == 1:
        raise UserError("--num-samples 1: a distribution needs 2 or more; 0 leaves samples out")
    bank_for(model, None)
    reference, extractor = _judges(samples, options.data.resolution, device)
    decoder = decoder_for(model, vae, device)
    if decoder is not None and capture.latents.scale is not None:
        decoder = VaeDecoder(decoder.vae, capture.latents.scale)
    with torch.no_grad():
        latents = torch.zeros(1, *model.image_shape, device=device)
        made = latents if decoder is None and not model.decodes else (decoder or model.decode)(latents)
    _check_extractor(extractor, reference, tuple(made.shape[1:]))
    return {
        **fields,
        "reference": reference,
        "extractors": ((extractor, METRICS),),
        "decoder": decoder,
        "sample_shape": tuple(made.shape[1:]),
    }


def _judges(samples: SampleOptions, resolution: int | None, device: str) -> tuple[Any, Any]:
    """Return the reference, opened, and the extractor on the device."""
    from repa_eval.interfaces.extractor import load_extractor

    quality = QualityOptions(samples=Path(), reference=samples.reference, resize=resolution)
    return quality.open_reference({}), load_extractor(samples.extractor, samples.extractor_weights).to(device)


def _check_extractor(extractor: Any, reference: Any, shape: Sequence[int]) -> None:
    """UserError where an extractor cannot read samples (C, H, W), or was not the one of the reference."""
    import torch

    from repa_eval.data.readers.statistics import Statistics
    from repa_eval.evaluation.reference import refuse_misfit

    if isinstance(reference, Statistics):
        refuse_misfit(reference, extractor, tuple(shape))
    else:
        extractor.prepare(reference)
    extractor(torch.zeros(1, *shape, dtype=torch.uint8))
