"""The path between data and noise, in this project's one convention: t = 0 data, t = 1 noise.

x_t = alpha(t) x + sigma(t) e, velocity = alpha'(t) x + sigma'(t) e (REPA, arXiv 2410.06940, section 2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from repa_eval.config import option


@dataclass(frozen=True, kw_only=True)
class Interpolant:
    """Path, prediction target and distribution of the training times."""

    path_type: str = option("linear", help="path between data and noise", choices=("linear", "cosine"))
    prediction: str = option("v", help="what the network predicts", choices=("v",))
    weighting: str = option("uniform", help="distribution of training times", choices=("uniform", "lognormal"))

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return alpha, sigma, alpha', sigma' at t, each of the shape of t."""
        if self.path_type == "linear":
            return 1 - t, t, -torch.ones_like(t), torch.ones_like(t)
        angle = t * (math.pi / 2)
        alpha, sigma = torch.cos(angle), torch.sin(angle)
        return alpha, sigma, -(math.pi / 2) * sigma, (math.pi / 2) * alpha

    def times(self, draw: Tensor) -> Tensor:
        """Return t in [0, 1] from one raw draw per sample: uniform in [0, 1), or standard normal for lognormal."""
        if self.weighting == "uniform":
            return draw
        ratio = draw.exp()
        return ratio / (1 + ratio) if self.path_type == "linear" else (2 / math.pi) * torch.atan(ratio)

    def mix(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return x_t (B, ...) of clean x (B, ...), noise (B, ...) and t (B,)."""
        alpha, sigma, _, _ = self.coefficients(_column(t, x))
        return alpha * x + sigma * noise

    def velocity(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return the target velocity (B, ...) of clean x, noise and t (B,); linear: noise - x."""
        _, _, d_alpha, d_sigma = self.coefficients(_column(t, x))
        return d_alpha * x + d_sigma * noise


def _column(t: Tensor, like: Tensor) -> Tensor:
    return t.reshape(-1, *[1] * (like.ndim - 1))
