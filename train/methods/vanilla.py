"""The baseline without a teacher, which the official trainer lacks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from repa_eval.config import option
from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.interfaces.method import Batch, Method, method
from repa_eval.train.losses import denoising_draws, velocity_loss


@method("vanilla")
@dataclass(frozen=True, kw_only=True)
class Vanilla(Method):
    """Plain SiT: the velocity loss alone (Ma et al. 2024)."""

    systems = ("SiT",)
    paper = "2401.08740"
    requires = frozenset({"velocity", "class labels"})

    interpolant: Interpolant = Interpolant()
    cfg_prob: float = option(0.1, help="probability of dropping the label in training", least=0, most=1)

    def architecture(self, config: Any, widths: Sequence[int]) -> Any:
        """Return the config with a null label if labels are dropped, and no projectors."""
        return dataclasses.replace(config, class_dropout_prob=self.cfg_prob, z_dims=())

    def draws(self, batch: Batch, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """Return time, noise and label drops."""
        return denoising_draws(batch, generators, self.interpolant)

    def losses(self, model: Any, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return the velocity loss per sample."""
        loss, _ = velocity_loss(model, batch, self.interpolant, cfg_prob=self.cfg_prob)
        return {"denoising_loss": loss}
