"""Alignment of a diffusion model with a teacher: checkpoint x layers x timesteps x metrics -> rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from repa_eval.data._registry import Images
from repa_eval.errors import UserError
from repa_eval.features import Array, ClassTokens, hidden_features, model_record, teacher_features
from repa_eval.interpolant import Interpolant
from repa_eval.metrics._kernels import normalise_rows
from repa_eval.metrics._registry import ALIGNMENT
from repa_eval.models.layers import DiffusionModel, check_taps
from repa_eval.results import Row, make_row
from repa_eval.teachers._registry import Teacher

TIMESTEPS = (0.05, 0.1, 0.2, 0.3, 0.5)
METRICS = ("cknna", "cka")


def align(
    model: DiffusionModel,
    teacher: Teacher,
    images: Images,
    *,
    layers: Sequence[int],
    timesteps: Sequence[float] = TIMESTEPS,
    metrics: Sequence[str] = METRICS,
    interpolant: Interpolant | None = None,
    normalise: bool = True,
    seed: int = 0,
    class_tokens: ClassTokens | None = None,
    batch_size: int = 256,
    columns: Mapping[str, Any] | None = None,
) -> list[Row]:
    """Return one row per timestep, layer and metric.

    Features: token means, null label; rows L2-normalised before a metric sees them (`normalise`), as the callers of
    platonic-rep do. layers: block numbers, 1-based. images: the same for model and teacher.
    class_tokens: see `hidden_features`. columns: further entries of every row (run, step, ...).
    """
    functions = {name: ALIGNMENT.get(name).function for name in metrics}
    check_taps(layers, model.depth)
    path = interpolant or Interpolant()
    target = _prepared(teacher_features(teacher, images, batch_size=batch_size), f"teacher {teacher.name}", normalise)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    record = protocol(teacher, images, path, normalise=normalise, seed=seed, dtype=dtype) | model_record(model)
    rows = []
    for t in timesteps:
        hidden = hidden_features(
            model,
            images,
            layers=layers,
            t=t,
            interpolant=path,
            seed=seed,
            class_tokens=class_tokens,
            batch_size=batch_size,
        )
        for layer in layers:
            features = _prepared(hidden[layer], f"layer {layer} at t={t}", normalise)
            cell = {"layer": layer, "timestep": float(t), "n": len(images), "seed": seed, **(columns or {})}
            for name, function in functions.items():
                rows.append(make_row(metric=name, value=function(features, target), protocol=record, **cell))
    return rows


def protocol(
    teacher: Teacher,
    images: Images,
    interpolant: Interpolant,
    *,
    normalise: bool = True,
    seed: int = 0,
    dtype: str = "float32",
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
        "pooling": "token mean",
        "label": "null",
        "t_convention": "t=1 noise",
        "path_type": interpolant.path_type,
        "rows_normalised": normalise,
        "dtype": dtype,
        "seed": seed,
    }


def _prepared(features: Array, what: str, normalise: bool) -> Array:
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise UserError(f"{what}: features of image {int(np.argmin(finite))} are not finite")
    return normalise_rows(features) if normalise else features
