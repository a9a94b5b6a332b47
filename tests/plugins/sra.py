"""SRA (arXiv 2505.02831): a block is aligned with a deeper one of the averaged model, which sees less noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repa_eval.plugins import (
    Batch,
    Interpolant,
    Method,
    Teacher,
    denoising_draws,
    method,
    option,
    uniform,
    velocity_loss,
)


@method("sra")
@dataclass(frozen=True, kw_only=True)
class SRA(Method):
    """Velocity loss + coeff x smooth L1 distance to the averaged model's deeper layer at a smaller time."""

    systems = ("SRA",)
    paper = "2505.02831"
    needs = frozenset({"labels", "ema"})

    student_layer: int = option(1, help="block that learns")
    teacher_layer: int = option(2, help="deeper block of the averaged model")
    longest: float = option(0.2, help="largest difference of the times")
    coeff: float = option(0.2, help="weight of the self-alignment")
    interpolant: Interpolant = Interpolant()

    def modules(self, model: Any, teachers: Sequence[Teacher]) -> nn.ModuleDict:
        width = model.width(self.student_layer)
        head = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        return nn.ModuleDict({"head": head})

    def draws(self, batch: Batch, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        draws = denoising_draws(batch, generators, self.interpolant)
        return {**draws, "earlier": uniform(generators)}  # (B,)

    def losses(self, model: Any, batch: Batch, step: int) -> dict[str, Tensor]:
        loss, hidden = velocity_loss(model, batch, self.interpolant, cfg_prob=0.1, taps=(self.student_layer,))
        assert batch.ema is not None
        with torch.no_grad():
            t = (self.interpolant.times(batch.draws["time"]) - self.longest * batch.draws["earlier"]).clamp(min=0)
            x_t = self.interpolant.mix(batch.x, batch.draws["noise"], t)
            _, deeper = batch.ema(x_t, t, batch.y, taps=(self.teacher_layer,))
        student = batch.modules["head"](hidden[self.student_layer])
        distance = F.smooth_l1_loss(student, deeper[self.teacher_layer], reduction="none")  # (B, N, D)
        return {"denoising_loss": loss, "self_loss": self.coeff * distance.flatten(1).mean(1)}
