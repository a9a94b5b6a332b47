"""REPA: one block's hidden states are aligned with the patch features of frozen encoders (Yu et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repa_eval.config import option
from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.errors import UserError
from repa_eval.interfaces.method import Batch, Method, method
from repa_eval.interfaces.teacher import Teacher
from repa_eval.train.alignment import (
    OWN,
    check_layer,
    configured,
    named_teachers,
    project,
    projectors_for,
    resized_tokens,
    spatially_normalised,
)
from repa_eval.train.alignment_schedule import AlignmentSchedule
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
    projector: str = option(OWN, help="heads to the teachers' tokens: mlp (REPA), conv (iREPA), or a plug-in's")
    resize_tokens: bool = option(
        False, help="interpolate a teacher's tokens to the model's grid where they differ; else that is refused"
    )
    spatial_norm: float = option(
        0.0, help="iREPA: share of the image's mean token that is taken from the teacher's tokens; 0 = off", least=0
    )
    alignment: AlignmentSchedule = AlignmentSchedule()
    interpolant: Interpolant = Interpolant()
    cfg_prob: float = option(0.1, help="probability of dropping the label in training", least=0, most=1)

    def teachers(self) -> list[str]:
        """Return the names in enc_type."""
        return named_teachers(self.enc_type)

    def architecture(self, config: Any, widths: Sequence[int]) -> Any:
        """Return the config with one projector per teacher, where the model brings its own."""
        check_layer("encoder_depth", self.encoder_depth, getattr(config, "depth", None))
        own = tuple(widths) if self.projector == OWN else ()
        return configured(config, class_dropout_prob=self.cfg_prob, z_dims=own)

    def modules(self, model: Any, teachers: Sequence[Teacher]) -> nn.ModuleDict:
        """Return the projectors of a model that has none of its own."""
        return projectors_for(model, teachers, self.encoder_depth, self.projector)

    def aligned_layer(self) -> int:
        """Return encoder_depth."""
        return self.encoder_depth

    def aligned_until(self) -> int | None:
        """Return the end of the alignment."""
        return self.alignment.end

    def active(self, step: int) -> bool:
        """Return whether the alignment goes on."""
        return self.alignment.active(step)

    def draws(self, batch: Batch, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """Return time, noise and label drops."""
        return denoising_draws(batch, generators, self.interpolant)

    def losses(self, model: Any, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return the velocity loss per sample and, while it lasts, the weighted alignment."""
        taps = (self.encoder_depth,) if self.active(step) else ()
        loss, hidden = velocity_loss(model, batch, self.interpolant, cfg_prob=self.cfg_prob, taps=taps)
        if not taps:
            return {"denoising_loss": loss}
        patches = hidden[self.encoder_depth][:, model.prefix_tokens :]  # (B, N, D)
        projected = project(model, batch.modules, patches)
        teachers = [self._fitted(tokens, patches.shape[1]) for tokens in batch.teachers]
        targets = [spatially_normalised(tokens, self.spatial_norm) for tokens in teachers]
        coeff = self.proj_coeff * self.alignment.share(step)
        return {"denoising_loss": loss, "proj_loss": coeff * self._alignment(targets, projected)}

    def _fitted(self, tokens: Tensor, count: int) -> Tensor:
        """Return a teacher's tokens (B, T, D), on the model's grid of `count` tokens if `resize_tokens` says so."""
        if tokens.shape[1] == count:
            return tokens
        if not self.resize_tokens:
            raise UserError(
                f"a teacher gives {tokens.shape[1]} tokens per image, the model has {count}; resize_tokens=true "
                "interpolates the teacher's to the model's grid"
            )
        return resized_tokens(tokens, count)

    def _alignment(self, targets: Sequence[Tensor], projected: Sequence[Tensor]) -> Tensor:
        if self.proj_loss == "cosine":
            return cosine_alignment(targets, projected)
        return token_contrast(targets, projected, self.proj_temperature)
