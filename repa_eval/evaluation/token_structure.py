"""Spatial structure of tokens over layers and timesteps, of the model and of a teacher -> rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from repa_eval.diffusion.model import DiffusionModel, check_taps
from repa_eval.errors import UserError
from repa_eval.features.capture import Capture
from repa_eval.features.given import GivenFeatures, kinds_of_teachers, tokens_by
from repa_eval.features.hidden_states import kinds_for, model_record, noised
from repa_eval.features.preflight import checked_input
from repa_eval.interfaces.image_source import ImageSource, Samples, chunks
from repa_eval.interfaces.metric import SPATIAL
from repa_eval.interfaces.teacher import Teacher
from repa_eval.metrics.shared.checks import reason_of
from repa_eval.results import Row, make_row

Means = dict[tuple[int | None, str], float]


@torch.no_grad()
def spatial(
    model: DiffusionModel,
    images: ImageSource,
    *,
    layers: Sequence[int],
    timesteps: Sequence[float],
    metrics: Sequence[str],
    capture: Capture | None = None,
    columns: Mapping[str, Any] | None = None,
) -> list[Row]:
    """Return a row per timestep, layer and spatial metric: the mean over the images, batch by batch, nothing kept."""
    check_taps(layers, model.depth)
    capture = capture or Capture()
    functions = _functions(metrics)
    reads = checked_input(model, images, capture)
    model.eval()
    rows = []
    for t in timesteps:

        def tokens(samples: Samples, indices: Sequence[int], t: float = t) -> dict[int | None, Tensor]:
            inputs = noised(
                model,
                samples,
                indices,
                reads=reads,
                t=t,
                interpolant=capture.interpolant,
                seed=capture.seed,
                stream=capture.stream,
                class_tokens=capture.class_tokens,
            )
            hidden = model(**inputs, taps=tuple(layers))[1]
            return {layer: hidden[layer][:, model.prefix_tokens :] for layer in layers}

        record = _record(images, {"features": "hidden states", **reads.record(), **capture.class_token_record}, capture)
        record |= {
            "label": "null",
            **model_record(model),
            "t_convention": "t=1 noise",
            "path_type": capture.interpolant.path_type,
        }
        for (layer, name), value in _means(
            images, kinds_for(model, reads), tokens, functions, capture.batch_size
        ).items():
            cell = {"layer": layer, "timestep": float(t), "n": len(images), "seed": capture.seed, **(columns or {})}
            rows.append(make_row(metric=name, value=value, note=reason_of(value), protocol=record, **cell))
    return rows


@torch.no_grad()
def spatial_level(
    teacher: Teacher,
    images: ImageSource,
    *,
    metrics: Sequence[str],
    capture: Capture | None = None,
    columns: Mapping[str, Any] | None = None,
) -> list[Row]:
    """Return reference levels METRIC_teacher: the same of the teacher's patch tokens of clean images."""
    capture = capture or Capture()
    kinds = sorted(kinds_of_teachers(images)) if isinstance(teacher, GivenFeatures) else ["images"]

    def tokens(samples: Samples, indices: Sequence[int]) -> dict[int | None, Tensor]:
        return {None: tokens_by(teacher, samples).patches}

    record = _record(images, {"features": f"teacher {teacher.name}", "teacher_hash": teacher.digest}, capture)
    found = _means(images, kinds, tokens, _functions(metrics), capture.batch_size)
    return [
        make_row(
            metric=f"{name}_teacher",
            value=value,
            protocol=record,
            **{"n": len(images), "note": reason_of(value) or teacher.name, **(columns or {})},
        )
        for (_, name), value in found.items()
    ]


def _functions(metrics: Sequence[str]) -> dict[str, Callable[..., float]]:
    functions = {}
    for name in metrics:
        metric = SPATIAL.get(name)
        if metric.needs_mask:
            raise UserError(f"{name} needs a mask of the foreground of every image: call it from Python")
        functions[name] = metric.function
    return functions


def _means(
    images: ImageSource,
    kinds: Sequence[str],
    tokens: Callable[[Samples, Sequence[int]], Mapping[Any, Tensor]],
    functions: Mapping[str, Callable[..., float]],
    batch_size: int,
) -> Means:
    """Return the mean over all images of every metric of every layer; a NaN keeps its reason."""
    sums: Means = {}
    images.require(*kinds)
    for indices in chunks(len(images), batch_size):
        for layer, values in tokens(images.fetch(indices, kinds), indices).items():
            array = values.float().cpu().numpy()
            for name, function in functions.items():
                value = function(array)
                before = sums.get((layer, name), 0.0)
                sums[layer, name] = value if value != value else before + value * len(indices)
    return {key: total if total != total else total / len(images) for key, total in sums.items()}


def _record(images: ImageSource, more: Mapping[str, Any], capture: Capture) -> dict[str, Any]:
    return {
        "kind": "spatial",
        "data": images.name,
        "split": images.split,
        "num_images": len(images),
        "data_hash": images.digest(),
        "seed": capture.seed,
        **more,
    }
