"""Dispersive loss (arXiv 2506.09027): hidden states of different images are pushed apart, without positive pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from repa_eval.plugins import Batch, Interpolant, Method, denoising_draws, method, option, velocity_loss


@method("dispersive")
@dataclass(frozen=True, kw_only=True)
class Dispersive(Method):
    """Velocity loss + coeff x log mean exp(-|h_i - h_j|^2 / temperature) over all pairs of the batch (InfoNCE, l2)."""

    systems = ("Dispersive",)
    paper = "2506.09027"

    layer: int = option(1, help="block whose output is dispersed")
    coeff: float = option(0.5, help="weight of the dispersive loss")
    temperature: float = option(0.5, help="of the exponential")
    interpolant: Interpolant = Interpolant()

    def draws(self, batch: Batch, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        return denoising_draws(batch, generators, self.interpolant)

    def losses(self, model: Any, batch: Batch, step: int) -> dict[str, Tensor]:
        loss, hidden = velocity_loss(model, batch, self.interpolant, cfg_prob=0.1, taps=(self.layer,))
        rows = batch.gather(hidden[self.layer].flatten(1).float())  # (N, T*D), of the whole batch
        squared = torch.cdist(rows, rows).square() / rows.shape[1]
        dispersion = torch.logsumexp(-squared.flatten() / self.temperature, dim=0) - torch.tensor(squared.numel()).log()
        return {"denoising_loss": loss, "dispersive_loss": self.coeff * dispersion}
