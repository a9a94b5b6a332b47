"""Features of paired images: hidden states of a diffusion model per layer and time, and a teacher's patch tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repa_eval.data._registry import ImageSource, to_signed
from repa_eval.errors import UserError
from repa_eval.interpolant import Interpolant
from repa_eval.models.layers import DiffusionModel
from repa_eval.seeding import generators, normal
from repa_eval.teachers._registry import Teacher

Array = np.ndarray[Any, Any]
ClassTokens = Callable[[Tensor], Tensor]  # uint8 images (B, C, H, W) -> clean class tokens (B, z)


@torch.no_grad()
def hidden_features(
    model: DiffusionModel,
    images: ImageSource,
    *,
    layers: Sequence[int],
    t: float,
    interpolant: Interpolant,
    seed: int = 0,
    stream: str = "align",
    class_tokens: ClassTokens | None = None,
    batch_size: int = 256,
) -> dict[int, Array]:
    """Return {layer: (N, D) float32}: token means of the hidden states of noised images, all layers in one forward.

    t: time in [0, 1], 1 = noise. The noise of image i depends on (seed, stream, i) alone: the same for every layer,
    time and checkpoint. The label is the null label: the class must not leak into the features (REPA
    issues 24, 32). class_tokens: what gives a model with a class token (REG) the clean one of an image; it is noised
    at the same t, and left out of the means.
    """
    if not 0.0 <= t <= 1.0:
        raise UserError(f"timestep {t} is outside [0, 1] (0 = data, 1 = noise)")
    collected: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    model.eval()
    for first in range(0, len(images), batch_size):
        indices = range(first, min(first + batch_size, len(images)))
        pixels, _ = images.fetch(indices)
        inputs = noised(
            model, pixels, indices, t=t, interpolant=interpolant, seed=seed, stream=stream, class_tokens=class_tokens
        )
        _, hidden = model(**inputs, taps=tuple(layers))
        for layer in layers:
            collected[layer].append(hidden[layer][:, model.prefix_tokens :].float().mean(1).cpu())
    return {layer: torch.cat(parts).numpy() for layer, parts in collected.items()}


def noised(
    model: DiffusionModel,
    pixels: Tensor,
    indices: Sequence[int],
    *,
    t: float,
    interpolant: Interpolant,
    seed: int,
    stream: str,
    class_tokens: ClassTokens | None = None,
) -> dict[str, Tensor]:
    """Return what the model is given for images uint8 (B, C, H, W): x (noised), t (B,), y (null), on its device.

    And cls_token (B, z), noised at the same t, where the model has one; UserError if `class_tokens` is missing then.
    """
    like = next(model.parameters())
    x = to_signed(pixels)
    noise = normal(generators(seed, stream, indices), x.shape[1:])
    times = torch.full((len(x),), t)
    expected = (model.config.in_channels, model.config.input_size, model.config.input_size)
    if x.shape[1:] != expected:
        given, wanted = ("x".join(map(str, shape)) for shape in (x.shape[1:], expected))
        raise UserError(f"the images are {given} (channels x height x width); this model reads {wanted}")
    x_t = model.noised(x, noise, times, interpolant).to(like)
    inputs = {"x": x_t, "t": times.to(like.device), "y": model.null_condition(len(x))}
    if model.prefix_tokens:
        if class_tokens is None:
            raise UserError("this model reads a class token beside the image: name the teacher that it is from")
        clean = class_tokens(pixels).float().cpu()
        own = normal(generators(seed, f"{stream} class", indices), clean.shape[1:])
        inputs["cls_token"] = interpolant.mix(clean, own, times).to(like)
    return inputs


def model_record(model: DiffusionModel) -> dict[str, Any]:
    """Return the protocol entries of a model that is not in the project's own convention, or has a class token."""
    record: dict[str, Any] = {}
    if model.native != DiffusionModel.native:
        record["native_convention"] = model.native
    if model.noising != DiffusionModel.noising:
        record["noising"] = model.noising
    if model.prefix_tokens:
        record["class_token"] = "the teacher's, noised at the same t"
    return record


@torch.no_grad()
def teacher_features(teacher: Teacher, images: ImageSource, *, batch_size: int = 256) -> Array:
    """Return (N, D) float32: token means of the teacher's patch features of clean images."""
    device = next(teacher.parameters()).device
    parts = []
    for first in range(0, len(images), batch_size):
        pixels, _ = images.fetch(range(first, min(first + batch_size, len(images))))
        parts.append(teacher(pixels.to(device)).patches.float().mean(1).cpu())
    return torch.cat(parts).numpy()
