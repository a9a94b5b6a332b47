"""REPA: one block's hidden states are aligned with the patch features of frozen encoders (Yu et al. 2024)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from repa_eval.config import option
from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.errors import UserError
from repa_eval.interfaces.method import Batch, Method, method
from repa_eval.interfaces.teacher import split_names
from repa_eval.train.losses import cosine_alignment, denoising_draws, token_contrast, velocity_loss


@method("repa")
@dataclass(frozen=True, kw_only=True)
class Repa(Method):
    """Velocity loss + proj_coeff x cosine alignment of block `encoder_depth` (equations 8 and 9)."""

    systems = ("REPA",)
    paper = "2410.06940"

    enc_type: str = option("dinov2-vit-b", help="teachers, joined by commas")
    encoder_depth: int = option(8, help="block whose output is aligned, 1-based")
    proj_coeff: float = option(0.5, help="weight of the alignment")
    proj_loss: str = option(
        "cosine", help="nt-xent: our own choice of negatives, for the code has none", choices=("cosine", "nt-xent")
    )
    proj_temperature: float = option(0.1, help="of nt-xent's softmax", least=1e-6)
    interpolant: Interpolant = Interpolant()
    cfg_prob: float = option(0.1, help="probability of dropping the label in training")

    def teachers(self) -> list[str]:
        """Return the names in enc_type."""
        names = split_names(self.enc_type)
        if not names:
            raise UserError("enc_type names no teacher; to train without one use the method vanilla")
        return names

    def architecture(self, config: Any, widths: Sequence[int]) -> Any:
        """Return the config with one projector per teacher."""
        if not 1 <= self.encoder_depth <= config.depth:
            raise UserError(f"encoder_depth {self.encoder_depth}: this model has blocks 1..{config.depth}")
        return dataclasses.replace(config, class_dropout_prob=self.cfg_prob, z_dims=tuple(widths))

    def aligned_layer(self) -> int:
        """Return encoder_depth."""
        return self.encoder_depth

    def draws(self, batch: Batch, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """Return time, noise and label drops."""
        return denoising_draws(batch, generators, self.interpolant)

    def losses(self, model: Any, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return the velocity loss per sample and the weighted alignment."""
        loss, hidden = velocity_loss(model, batch, self.interpolant, cfg_prob=self.cfg_prob, taps=(self.encoder_depth,))
        projected = [head(hidden[self.encoder_depth]) for head in model.projectors]
        return {"denoising_loss": loss, "proj_loss": self.proj_coeff * self._alignment(batch.teachers, projected)}

    def _alignment(self, targets: Sequence[Tensor], projected: Sequence[Tensor]) -> Tensor:
        if self.proj_loss == "cosine":
            return cosine_alignment(targets, projected)
        return token_contrast(targets, projected, self.proj_temperature)
