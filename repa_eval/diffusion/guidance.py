"""Classifier-free guidance within an interval of times (Kynkäänniemi et al. 2024), as REPA applies it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from repa_eval.diffusion.model import DiffusionModel
from repa_eval.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """cfg_scale 1 (or less) is no guidance; it applies where low <= t <= high, both inclusive, t = 1 being noise.

    channels: how many channels are guided, counted from the first; None = all. DiT and SiT guide 3 of 4.
    """

    cfg_scale: float = 1.0
    low: float = 0.0
    high: float = 1.0
    channels: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.cfg_scale) and self.cfg_scale >= 0):
            raise UserError(f"cfg_scale {self.cfg_scale}: a guidance scale is a finite number of at least 0")
        if not 0 <= self.low <= self.high <= 1:
            raise UserError(
                f"guidance from t = {self.low} to {self.high}: expected 0 <= low <= high <= 1 (0 = data, 1 = noise)"
            )
        if self.channels is not None and self.channels < 1:
            raise UserError(f"guided channels {self.channels}: at least 1 is guided, or None for all")

    def applies(self, t: float) -> bool:
        """Return whether the velocity at t is guided."""
        return self.cfg_scale > 1.0 and self.low <= t <= self.high

    def mix(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        """Return u + cfg_scale (c - u) (B, C, ...); channels that are not guided stay those of the condition."""
        guided = unconditional + self.cfg_scale * (conditional - unconditional)
        if self.channels is None:
            return guided
        return torch.cat([guided[:, : self.channels], conditional[:, self.channels :]], dim=1)


def guided_velocity(
    model: DiffusionModel,
    x: Tensor,
    t: float,
    labels: Tensor,
    guidance: Guidance,
    *,
    guided: bool,
    dtype: torch.dtype,
    r: float | None = None,
) -> Tensor:
    """Return the velocity (B, C, H, W), float64, at state x (float64) and time t: u + cfg_scale (c - u) if guided.

    labels: (B,), or whatever else the model is conditioned on (GMem: snippets (B, D)). t runs as the model counts it.
    r: the second time, for a model of two (`times`).
    """
    count = len(x)
    if guided:
        x, labels = torch.cat([x, x]), torch.cat([labels, null_of(model, labels)])
    times = torch.full((len(x),), t, dtype=torch.float64, device=x.device).to(dtype)
    second = {} if r is None else {"r": torch.full_like(times, r)}
    velocity = model(x.to(dtype), times, labels, **second)[0].double()
    return guidance.mix(velocity[:count], velocity[count:]) if guided else velocity


def null_of(model: DiffusionModel, labels: Tensor) -> Tensor:
    """Return the condition "nothing in particular", of the shape of the labels (B,) or snippets (B, D)."""
    if labels.is_floating_point():
        return model.null_condition(len(labels)).to(labels)
    return torch.full_like(labels, model.null_label)
