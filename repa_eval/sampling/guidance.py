"""Classifier-free guidance within an interval of times (Kynkäänniemi et al. 2024), as REPA applies it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from repa_eval.models.layers import DiffusionModel


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """cfg_scale 1 is no guidance; it applies where low <= t <= high, both inclusive, t = 1 being noise."""

    cfg_scale: float = 1.0
    low: float = 0.0
    high: float = 1.0

    def applies(self, t: float) -> bool:
        """Return whether the velocity at t is guided."""
        return self.cfg_scale > 1.0 and self.low <= t <= self.high


def guided_velocity(
    model: DiffusionModel, x: Tensor, t: float, labels: Tensor, guidance: Guidance, *, guided: bool, dtype: torch.dtype
) -> Tensor:
    """Return the velocity (B, C, H, W), float64, at state x (float64) and time t: u + cfg_scale (c - u) if guided."""
    count = len(x)
    if guided:
        null = torch.full_like(labels, model.null_label)
        x, labels = torch.cat([x, x]), torch.cat([labels, null])
    times = torch.full((len(x),), t, dtype=torch.float64, device=x.device)
    velocity = model(x.to(dtype), times.to(dtype), labels)[0].double()
    if not guided:
        return velocity
    conditional, unconditional = velocity[:count], velocity[count:]
    return unconditional + guidance.cfg_scale * (conditional - unconditional)
