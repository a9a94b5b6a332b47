"""Pictures for the report: samples side by side, and token features as colours."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.diffusion.model import DiffusionModel
from repa_eval.evaluation.tiles import GAP, LARGEST, framed, reduced
from repa_eval.features.capture import ClassTokens
from repa_eval.features.hidden_states import kinds_for, noised
from repa_eval.features.model_input import USUAL, LatentReading, model_input
from repa_eval.interfaces.image_source import ImageSource
from repa_eval.interfaces.teacher import Teacher
from repa_eval.sampling.sample_files import png

Array = np.ndarray[Any, Any]


@torch.no_grad()
def token_colours(
    model: DiffusionModel,
    teacher: Teacher,
    images: ImageSource,
    *,
    count: int,
    t: float,
    interpolant: Interpolant,
    class_tokens: ClassTokens | None = None,
    latents: LatentReading = USUAL,
) -> tuple[bytes, dict[str, Any]]:
    """Return a PNG with one row per source (image, teacher, every block) of `count` images, and the words beside it.

    Colours are the first three principal components of a source's tokens less each position's mean, fitted on all of
    `images`, each scaled to its 2nd..98th percentile: comparable within a row, not between rows. class_tokens: for a
    model that reads one, which is not among the pictures. latents: how they are read.
    """
    reads = model_input(images, model.image_shape, latents)
    samples = images.fetch(range(len(images)), {"images", *kinds_for(model, reads)})
    pixels, side = samples.pixels, min(images.shape[-1], LARGEST)
    device = next(model.parameters()).device
    layers = range(1, model.depth + 1)
    inputs = noised(
        model,
        samples,
        range(len(images)),
        reads=reads,
        t=t,
        interpolant=interpolant,
        seed=0,
        stream="align",
        class_tokens=class_tokens,
    )
    _, hidden = model(**inputs, taps=layers)
    sources = {f"teacher {teacher.name}": teacher(pixels.to(device)).patches}
    sources |= {f"block {layer}": hidden[layer][:, model.prefix_tokens :] for layer in layers}
    rows = [reduced(_grey_to_rgb(pixels[:count]).numpy())]
    rows += [_coloured(tokens.float().cpu(), count, side) for tokens in sources.values()]
    picture = np.concatenate([np.concatenate(list(framed(row)), axis=-1) for row in rows], axis=-2)
    words = {
        "caption": f"First three principal components of token features as colours, t = {t:g}, null label, the mean of "
        "each position subtracted. Each row has its own components: compare colours within a row, not between rows.",
        "rows": ["image", *sources],
        "columns": count,
        "tile": side + 2 * GAP,
    }
    return png(picture), words


def _coloured(tokens: Tensor, count: int, side: int) -> Array:
    """Return uint8 (count, 3, side, side) from tokens (N, T, D) of a square grid."""
    grid = int(tokens.shape[1] ** 0.5)
    # without each position's mean: on a small grid the place of a token explains half of its variance
    centred = (tokens.double() - tokens.double().mean(0)).flatten(0, 1)
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    basis = vectors[:, -3:].flip(1)
    basis = basis * basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()  # either sign is an eigenvector
    scores = centred @ basis
    low, high = torch.quantile(scores[:: max(1, len(scores) // 4096)], torch.tensor([0.02, 0.98]).double(), dim=0)
    colours = ((scores - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    maps = colours.reshape(len(tokens), grid, grid, 3)[:count].permute(0, 3, 1, 2)
    enlarged = F.interpolate(maps, size=(side, side), mode="nearest")
    result: Array = (enlarged * 255).round().to(torch.uint8).numpy()
    return result


def _grey_to_rgb(images: Tensor) -> Tensor:
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
