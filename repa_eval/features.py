"""Features of paired images: hidden states of a diffusion model per layer and time, and a teacher's patch tokens."""

from __future__ import annotations

from collections.abc import Sequence
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
    batch_size: int = 256,
) -> dict[int, Array]:
    """Return {layer: (N, D) float32}: token means of the hidden states of noised images, all layers in one forward.

    t: time in [0, 1], 1 = noise. The noise of image i depends on (seed, stream, i) alone: the same for every layer,
    time and checkpoint. The label is the null label: the class must not leak into the features (REPA
    issues 24, 32).
    """
    if not 0.0 <= t <= 1.0:
        raise UserError(f"timestep {t} is outside [0, 1] (0 = data, 1 = noise)")
    collected: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    model.eval()
    for first in range(0, len(images), batch_size):
        indices = range(first, min(first + batch_size, len(images)))
        pixels, _ = images.fetch(indices)
        x, times, labels = noised(model, pixels, indices, t=t, interpolant=interpolant, seed=seed, stream=stream)
        _, hidden = model(x, times, labels, taps=tuple(layers))
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the model is given for images uint8 (B, C, H, W): x_t, t (B,) and null labels (B,), on its device."""
    like = next(model.parameters())
    x = to_signed(pixels)
    noise = normal(generators(seed, stream, indices), x.shape[1:])
    times = torch.full((len(x),), t)
    expected = (model.config.in_channels, model.config.input_size, model.config.input_size)
    if x.shape[1:] != expected:
        given, wanted = ("x".join(map(str, shape)) for shape in (x.shape[1:], expected))
        raise UserError(f"the images are {given} (channels x height x width); this model reads {wanted}")
    x_t = model.noised(x, noise, times, interpolant).to(like)
    return x_t, times.to(like.device), model.null_condition(len(x))


@torch.no_grad()
def teacher_features(teacher: Teacher, images: ImageSource, *, batch_size: int = 256) -> Array:
    """Return (N, D) float32: token means of the teacher's patch features of clean images."""
    device = next(teacher.parameters()).device
    parts = []
    for first in range(0, len(images), batch_size):
        pixels, _ = images.fetch(range(first, min(first + batch_size, len(images))))
        parts.append(teacher(pixels.to(device)).patches.float().mean(1).cpu())
    return torch.cat(parts).numpy()
