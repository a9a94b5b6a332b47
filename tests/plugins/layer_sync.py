"""LayerSync (arXiv 2510.12581): a shallow block is aligned with a deeper one of its own network, without a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from repa_eval.plugins import (
    Batch,
    Interpolant,
    Method,
    UserError,
    cosine_alignment,
    denoising_draws,
    method,
    option,
    velocity_loss,
)


@method("layer-sync")
@dataclass(frozen=True, kw_only=True)
class LayerSync(Method):
    """Velocity loss - coeff x cosine of two layers' tokens, the deeper one without gradient."""

    systems = ("LayerSync",)
    paper = "2510.12581"

    shallow: int = option(1, help="block that learns")
    deep: int = option(2, help="block that it learns from")
    coeff: float = option(0.5, help="weight of the alignment")
    interpolant: Interpolant = Interpolant()

    def architecture(self, config: Any, widths: Sequence[int]) -> Any:
        if not 1 <= self.shallow < self.deep <= config.depth:
            raise UserError(f"shallow {self.shallow}, deep {self.deep}: two blocks of 1..{config.depth}, in this order")
        return config

    def draws(self, batch: Batch, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        return denoising_draws(batch, generators, self.interpolant)

    def losses(self, model: Any, batch: Batch, step: int) -> dict[str, Tensor]:
        loss, hidden = velocity_loss(model, batch, self.interpolant, cfg_prob=0.1, taps=(self.shallow, self.deep))
        aligned = cosine_alignment([hidden[self.deep].detach()], [hidden[self.shallow]])
        return {"denoising_loss": loss, "sync_loss": self.coeff * aligned}
