"""Frechet distance and other numbers of generated images against a reference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from repa_eval.api.image_arrays import Range
from repa_eval.api.image_arrays import images as images_of
from repa_eval.api.opening import lent
from repa_eval.api.results import Measurement
from repa_eval.data.readers.image_files import open_images
from repa_eval.data.readers.statistics import Statistics, open_statistics
from repa_eval.errors import UserError
from repa_eval.evaluation.evaluator_rules import protocol_named
from repa_eval.evaluation.evaluators import Evaluator, evaluate_all, load_evaluators, plan_metrics
from repa_eval.interfaces.extractor import EXTRACTORS, Extractor, UserExtractor
from repa_eval.interfaces.image_source import ImageSource
from repa_eval.interfaces.images import DATA, load_data
from repa_eval.interfaces.recorded_names import recorded_data
from repa_eval.runtime.device import choose_device
from repa_eval.sampling.sample_record import check_complete, read_record

SamplesLike = ImageSource | NDArray[Any] | Tensor | str | Path
METRICS = ("fd", "sfd", "inception_score", "precision_recall")


def fid(
    samples: SamplesLike,
    reference: SamplesLike | Statistics | None = None,
    *,
    extractor: str | Extractor | nn.Module | None = None,
    metrics: str | Iterable[str] = METRICS,
    protocol: str = "adm",
    range: Range | None = None,
    resize: int | None = None,
    held_out: SamplesLike | None = None,
    batch_size: int = 256,
    columns: Mapping[str, Any] | None = None,
    device: str = "auto",
) -> Measurement:
    """Measure generated images against a reference; `.value("fid")` is the Frechet distance on Inception's features.

    samples, reference, held_out: a folder, .zip or .npz of images, an array or tensor (see `images`; range is that of
    floats), or a source; a reference may also be a file of statistics or the name of a data set, and is by default the
    registered data that is recorded beside the samples. extractor: a name of `repa-eval list extractors`, or a network
    that turns uint8 images (B, C, H, W) into features (B, D); None for the recorded one, else inception. metrics that
    an extractor cannot give (it has no logits or no spatial map) are left out. protocol: adm, torch-fidelity, clean or
    all: whose rules. resize: the side to which files are cropped and resized. held_out: real images outside the
    training set, for the metrics of memorisation.
    """
    record = (read_record(Path(samples)) if isinstance(samples, str | Path) else None) or {}
    fake = _opened(samples, "samples", range=range, resize=resize)
    if isinstance(samples, str | Path):
        check_complete(Path(samples), record, len(fake))
    real = _reference(reference, record, range=range, resize=resize)
    others = None if held_out is None else _opened(held_out, "held_out", range=range, resize=resize)
    where = choose_device(device)
    names = metrics.split(",") if isinstance(metrics, str) else list(metrics)
    own = extractor if isinstance(extractor, Extractor | nn.Module) else None
    with lent(*([own] if isinstance(own, nn.Module) else [])):
        if own is None:
            chosen = extractor if isinstance(extractor, str) else None
            recorded = record.get("extractor")
            default = chosen or (recorded if recorded in EXTRACTORS.names() else None) or "inception"
            plan = plan_metrics(names, extractor=chosen, default=default)
            evaluators = load_evaluators(protocol, list(plan), device=where)
        else:
            judge = as_extractor(own)
            plan = plan_metrics(names, extractor=judge.name, default=judge.name)
            evaluators = [Evaluator(protocol_named(protocol), {judge.name: judge})]
        rows = evaluate_all(
            fake,
            real,
            evaluators,
            plan,
            record={**record, **(columns or {})},
            resize=resize,
            held_out=others,
            batch_size=batch_size,
            device=where,
        )
    if not rows:
        raise UserError(f"extractor {', '.join(plan)} gives none of the metrics {', '.join(names)}")
    return Measurement(tuple(rows))


def as_extractor(given: Extractor | nn.Module) -> Extractor:
    """Return an extractor; of a network, one that gives it uint8 images (B, C, H, W) on its own device."""
    return given if isinstance(given, Extractor) else UserExtractor(OnItsDevice(given), type(given).__name__.lower())


class OnItsDevice(nn.Module):
    """A network that is given its images where its parameters are."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Any:
        """Return what the network answers to images (B, C, H, W)."""
        first = next(self.network.parameters(), None)
        return self.network(images if first is None else images.to(first.device))


def _opened(given: SamplesLike, what: str, *, range: Range | None, resize: int | None) -> ImageSource:
    if isinstance(given, np.ndarray | Tensor):
        return images_of(given, range=range, name=what)
    if not isinstance(given, str | Path):
        return given
    if isinstance(given, str) and given.partition(":")[0] in DATA.names():
        return load_data(given, "reference" if what == "reference" else "test", resolution=resize)
    return open_images(given, resize=resize)


def _reference(
    given: SamplesLike | Statistics | None, record: Mapping[str, Any], *, range: Range | None, resize: int | None
) -> ImageSource | Statistics:
    if isinstance(given, Statistics):
        return given
    if given is None:
        recorded = recorded_data(record.get("data"), "the samples", "reference=")
        if recorded is None:
            raise UserError("the samples do not say what they are compared with: name a reference, such as 'digits'")
        return load_data(recorded, "reference", resolution=resize)
    if isinstance(given, str | Path) and Path(given).is_file() and (found := open_statistics(Path(given))) is not None:
        return found
    return _opened(given, "reference", range=range, resize=resize)
