"""iREPA (arXiv 2512.10794): a convolution as projector, and spatially normalised tokens of the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from repa_eval.plugins import (
    Batch,
    Interpolant,
    Method,
    Teacher,
    cosine_alignment,
    denoising_draws,
    method,
    option,
    projector,
    velocity_loss,
)


@projector("irepa")
class Convolution(nn.Module):
    """3x3 convolution over the grid of tokens; `repa` takes it too, as projector=irepa."""

    def __init__(self, width: int, teacher_width: int, hidden_width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, teacher_width, 3, padding=1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (B, N, Z) from tokens (B, N, D)."""
        side = isqrt(tokens.shape[1])
        maps: Tensor = self.conv(tokens.mT.reshape(len(tokens), -1, side, side))
        return maps.flatten(2).mT


def normalised(tokens: Tensor, gamma: float) -> Tensor:
    """Return tokens (B, T, D) without gamma times their mean over the image, in units of their deviation."""
    return (tokens - gamma * tokens.mean(1, keepdim=True)) / (tokens.std(1, keepdim=True) + 1e-6)


@method("irepa")
@dataclass(frozen=True, kw_only=True)
class IRepa(Method):
    """Velocity loss + proj_coeff x cosine alignment through a convolution."""

    systems = ("iREPA",)
    paper = "2512.10794"

    teacher: str = option("digits-vit", help="the frozen encoder")
    layer: int = option(1, help="aligned block")
    gamma: float = option(0.8, help="share of the mean that is taken from the teacher's tokens")
    proj_coeff: float = option(0.5, help="weight of the alignment")
    interpolant: Interpolant = Interpolant()

    def teachers(self) -> list[str]:
        return [self.teacher]

    def aligned_layer(self) -> int:
        return self.layer

    def modules(self, model: Any, teachers: Sequence[Teacher]) -> nn.ModuleDict:
        return nn.ModuleDict({"head": Convolution(model.width(self.layer), teachers[0].width, 0)})

    def draws(self, batch: Batch, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        return denoising_draws(batch, generators, self.interpolant)

    def losses(self, model: Any, batch: Batch, step: int) -> dict[str, Tensor]:
        loss, hidden = velocity_loss(model, batch, self.interpolant, cfg_prob=0.1, taps=(self.layer,))
        projected = batch.modules["head"](hidden[self.layer][:, model.prefix_tokens :])
        aligned = cosine_alignment([normalised(batch.teachers[0], self.gamma)], [projected])
        return {"denoising_loss": loss, "proj_loss": self.proj_coeff * aligned}
