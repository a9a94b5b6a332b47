"""Random views of small grey images, made from given draws: what the embedded teacher and judge are trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from repa_eval.data.digits import Affine
from repa_eval.runtime.seeding import normal, uniform

_RANGES = Affine(zoom=0.2, shift=0.12 * 8, rotation=0.25, shear=0.15, aspect=0.1)
BACKGROUND = -1.0  # black in [-1, 1]


def view_draws(generators: Sequence[torch.Generator], shape: Sequence[int]) -> dict[str, Tensor]:
    """Return the draws of one view per sample of images (C, S, S)."""
    return {
        "affine": uniform(generators, (6,)) * 2 - 1,
        "brightness": uniform(generators) * 2 - 1,
        "noise_level": uniform(generators),
        "noise": normal(generators, shape),
    }


def view(x: Tensor, draws: dict[str, Tensor], *, brightness: float = 0.2, noise: float = 0.15) -> Tensor:
    """Return a view (B, C, S, S) of images x in [-1, 1]: moved, brightened or darkened, noised."""
    moved = _RANGES.apply(x, draws["affine"], fill=BACKGROUND)
    gain = 1 + brightness * draws["brightness"]
    lit = (moved - BACKGROUND) * gain[:, None, None, None] + BACKGROUND
    return lit + noise * draws["noise_level"][:, None, None, None] * draws["noise"]
