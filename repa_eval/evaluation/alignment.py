"""Alignment of a diffusion model with a teacher: checkpoint x layers x timesteps x metrics -> rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from repa_eval.diffusion.model import DiffusionModel, check_taps
from repa_eval.diffusion.timesteps import TIMESTEPS
from repa_eval.errors import UserError
from repa_eval.evaluation.uncertainty import ROUNDS, half_sample_error, permutation_baseline
from repa_eval.features.capture import POOLINGS, Array, Capture
from repa_eval.features.foreign import Call, foreign_features, foreign_record
from repa_eval.features.hidden_states import hidden_features, model_record
from repa_eval.features.hooks import Part
from repa_eval.features.preflight import checked_input
from repa_eval.features.teacher import teacher_features
from repa_eval.interfaces.image_source import ImageSource
from repa_eval.interfaces.metric import ALIGNMENT
from repa_eval.interfaces.teacher import Teacher
from repa_eval.metrics.shared.checks import reason_of
from repa_eval.metrics.shared.kernels import normalise_rows, remove_outliers
from repa_eval.metrics.shared.prepared import Prepared, prepare
from repa_eval.results import Row, make_row
from repa_eval.runtime.hashing import digest_module

METRICS = ("cknna", "cka")
LEAST = 4  # the unbiased estimators divide by n - 3


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What is done to features before a metric sees them; by default as platonic-rep's callers do.

    clamp: values beyond this quantile of |x| are clamped to it, 1 = none. normalise: rows get length 1.
    """

    clamp: float = 0.95
    normalise: bool = True

    def __call__(self, features: Array, what: str) -> Prepared:
        """Return features (N, D) prepared; UserError that names the first image whose features are not finite."""
        finite = np.isfinite(features).all(axis=1)
        if not finite.all():
            raise UserError(f"{what}: features of image {int(np.argmin(finite))} are not finite")
        clamped = remove_outliers(features, q=self.clamp)
        return prepare(normalise_rows(clamped) if self.normalise else clamped, name=what)

    def record(self) -> dict[str, Any]:
        """Return the protocol entries."""
        return {"outliers_clamped": self.clamp, "rows_normalised": self.normalise}


RAW = Preparation(clamp=1.0, normalise=False)


def align(
    model: DiffusionModel,
    teacher: Teacher,
    images: ImageSource,
    *,
    layers: Sequence[int],
    timesteps: Sequence[float] = TIMESTEPS,
    metrics: Sequence[str] = METRICS,
    preparation: Preparation = Preparation(),
    capture: Capture | None = None,
    confidence: bool = False,
    columns: Mapping[str, Any] | None = None,
    target: Prepared | None = None,
) -> list[Row]:
    """Return one row per timestep, layer and metric: all layers in one forward per timestep, the teacher's part once.

    layers: block numbers, 1-based. images: read by the teacher, and by the model unless it reads the latents that the
    source gives of them. capture: noise, pooling, batch size, cache.
    confidence: give every row a standard error, and add rows METRIC_permuted: the score of
    randomly re-paired images (chance level).
    columns: further entries of every row (run, step, ...). target: the teacher's features where they are known already
    (`target_of`, with the same preparation and capture).
    """
    for name in metrics:
        ALIGNMENT.get(name)
    check_taps(layers, model.depth)
    _enough(images)
    capture = capture or Capture()
    reads = checked_input(model, images, capture)
    weights_hash = digest_module(model) if capture.cache is not None else ""
    target = target or target_of(teacher, images, preparation, capture)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    record = protocol(teacher, images, capture, preparation, dtype=dtype) | model_record(model) | reads.record()
    rows = []
    for t in timesteps:
        hidden = hidden_features(model, images, layers=layers, t=t, capture=capture, weights_hash=weights_hash)
        for layer in layers if capture.share.first else ():
            features = preparation(hidden.pop(layer), f"layer {layer} at t={t}")
            cell = {"layer": layer, "timestep": float(t), "n": len(images), "seed": capture.seed, **(columns or {})}
            rows += _cells(features, target, metrics, record, cell, confidence)
    return rows


def target_of(teacher: Teacher, images: ImageSource, preparation: Preparation, capture: Capture) -> Prepared:
    """Return a teacher's features of clean images, prepared to be compared with."""
    return preparation(teacher_features(teacher, images, capture=capture), f"teacher {teacher.name}")


def align_foreign(
    network: nn.Module,
    teacher: Teacher,
    images: ImageSource,
    *,
    layers: Sequence[str],
    call: Call,
    t: float | None = None,
    prefix_tokens: int = 0,
    part: Part = None,
    channels_last: bool | None = None,
    metrics: Sequence[str] = METRICS,
    preparation: Preparation = Preparation(),
    capture: Capture | None = None,
    confidence: bool = False,
    columns: Mapping[str, Any] | None = None,
    call_id: str = "",
) -> list[Row]:
    """Return one row per submodule and metric of a network that is not ours, read by hooks.

    layers: names of submodules, numbered 1, 2, ... in the rows, their names in the notes. call: runs the network on
    uint8 images (B, C, H, W) with these indices; what it does with them (noise, time t, labels) is the caller's.
    part, channels_last, prefix_tokens, call_id: see `foreign_features`.
    """
    capture = capture or Capture()
    how: dict[str, Any] = {"t": t, "prefix_tokens": prefix_tokens, "part": part, "channels_last": channels_last}
    how |= {"weights_hash": digest_module(network), "call_id": call_id}
    found = foreign_features(network, images, layers=layers, call=call, capture=capture, **how)
    target = target_of(teacher, images, preparation, capture)
    record = protocol(teacher, images, capture, preparation) | {"label": "the caller's"}
    record |= foreign_record(network, call, **how)
    rows = []
    for number, name in enumerate(layers, 1):
        features = preparation(found[name], name)
        cell = {"layer": number, "timestep": t, "n": len(images), "seed": capture.seed, "note": name}
        rows += _cells(features, target, metrics, record, {**cell, **(columns or {})}, confidence)
    return rows


def teacher_baseline(
    teacher: Teacher,
    others: Sequence[Teacher],
    images: ImageSource,
    *,
    metrics: Sequence[str] = METRICS,
    preparation: Preparation = Preparation(),
    capture: Capture | None = None,
    confidence: bool = False,
    columns: Mapping[str, Any] | None = None,
) -> list[Row]:
    """Return reference levels: METRIC_teachers, the teacher against each other teacher on the same clean images."""
    capture = replace(capture or Capture(), pool="mean")
    target = preparation(teacher_features(teacher, images, capture=capture), f"teacher {teacher.name}")
    rows = []
    for other in others:
        features = preparation(teacher_features(other, images, capture=capture), f"teacher {other.name}")
        record = protocol(teacher, images, capture, preparation) | {
            "features": f"teacher {other.name}",
            "features_hash": other.digest,
        }
        cell = {"n": len(images), "note": f"{other.name} against {teacher.name}", **(columns or {})}
        found = _cells(features, target, metrics, record, cell, confidence)
        rows += [replace(row, metric=f"{row.metric}_teachers") for row in found if not row.metric.endswith("_permuted")]
    return rows


def _cells(
    features: Prepared,
    target: Prepared,
    metrics: Sequence[str],
    record: Mapping[str, Any],
    cell: Mapping[str, Any],
    confidence: bool,
) -> list[Row]:
    rows = []
    for name in metrics:
        function = ALIGNMENT.get(name).function
        value = function(features, target)
        columns = dict(cell)
        if (reason := reason_of(value)) is not None:
            columns["note"] = "; ".join(filter(None, (columns.get("note"), reason)))
        elif confidence:
            x, y = features.values, target.values
            columns["stderr"] = half_sample_error(function, x, y)
            mean, deviation = permutation_baseline(function, x, y)
            baseline = {**cell, "stderr": deviation, "note": f"rows of the teacher permuted, {ROUNDS} times"}
            rows.append(make_row(metric=f"{name}_permuted", value=mean, protocol=dict(record), **baseline))
        rows.append(make_row(metric=name, value=value, protocol=dict(record), **columns))
    return rows


def protocol(
    teacher: Teacher, images: ImageSource, capture: Capture, preparation: Preparation, *, dtype: str = "float32"
) -> dict[str, Any]:
    """Return the record that stands beside alignment rows."""
    return {
        "kind": "alignment",
        "data": images.name,
        "split": images.split,
        "num_images": len(images),
        "data_hash": images.digest(),
        "teacher": teacher.name,
        "teacher_hash": teacher.digest,
        "pooling": POOLINGS[capture.pool],
        "label": "null",
        "t_convention": "t=1 noise",
        "path_type": capture.interpolant.path_type,
        **preparation.record(),
        **capture.class_token_record,
        "dtype": dtype,
        "seed": capture.seed,
    }


def _enough(images: ImageSource) -> None:
    if len(images) < LEAST:
        raise UserError(f"{images.name}:{images.split} has {len(images)} images; alignment needs at least {LEAST}")
