"""REG: the teacher's class token is one more token, noised and denoised with the latent (arXiv 2507.01467)."""

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
from repa_eval.interfaces.image_source import ImageSource
from repa_eval.interfaces.method import Batch, Method, method
from repa_eval.interfaces.teacher import Teacher
from repa_eval.runtime.seeding import normal
from repa_eval.train.alignment import check_layer, named_teachers, project
from repa_eval.train.alignment_schedule import AlignmentSchedule
from repa_eval.train.losses import cosine_alignment, denoising_draws, drop_labels

FITTED_ON, AT_ONCE = 4096, 256  # training images of the components; images per pass of the teacher


@method("reg")
@dataclass(frozen=True, kw_only=True)
class REG(Method):
    """Velocity losses of the latent and of the teacher's class token + cosine alignment of all 1 + N tokens."""

    systems = ("REG",)
    paper = "2507.01467"
    requires = frozenset({"velocity", "class labels", "taps", "one grid", "class token"})

    enc_type: str = option("dinov2-vit-b", help="teachers, joined by commas; the class token is the first one's")
    encoder_depth: int = option(8, help="block whose output is aligned, 1-based")
    proj_coeff: float = option(0.5, help="weight of the alignment")
    cls_coeff: float = option(0.03, help="weight of the class token's velocity loss")
    cls_dim: int = option(
        0, help="0: the whole class token; else that many z-scored principal components of it (ours)", least=0
    )
    alignment: AlignmentSchedule = AlignmentSchedule()
    interpolant: Interpolant = Interpolant()
    cfg_prob: float = option(0.1, help="probability of dropping the label in training", least=0, most=1)

    def teachers(self) -> list[str]:
        """Return the names in enc_type."""
        return named_teachers(self.enc_type, hint="this method needs the class token of one")

    def architecture(self, config: Any, widths: Sequence[int]) -> Any:
        """Return the config with the class token's width, and one projector per teacher."""
        check_layer("encoder_depth", self.encoder_depth, config.depth)
        if self.cls_dim > widths[0]:
            raise UserError(f"cls_dim {self.cls_dim}: the class token of {self.teachers()[0]} has {widths[0]} numbers")
        return dataclasses.replace(
            config,
            class_dropout_prob=self.cfg_prob,
            z_dims=tuple(widths),
            cls_token_dim=self.cls_dim,
            cls_source_dim=widths[0] if self.cls_dim else 0,
        )

    def aligned_layer(self) -> int:
        """Return encoder_depth."""
        return self.encoder_depth

    def aligned_until(self) -> int | None:
        """Return the end of the alignment."""
        return self.alignment.end

    @torch.no_grad()
    def prepare(self, model: Any, images: ImageSource, teachers: Sequence[Teacher]) -> None:
        """Fit the principal components of the class token on evenly spaced training images, if they are wanted."""
        if not self.cls_dim:
            return
        count = min(FITTED_ON, len(images))
        chosen = [i * len(images) // count for i in range(count)]
        device = next(teachers[0].parameters()).device
        tokens = []
        for first in range(0, count, AT_ONCE):
            pixels = images.pixels(chosen[first : first + AT_ONCE])
            tokens.append(self._present(teachers[0](pixels.to(device)).cls).double().cpu())
        mean, matrix = components(torch.cat(tokens), self.cls_dim)
        model.cls_mean.copy_(mean)
        model.cls_map.copy_(matrix)

    def draws(self, batch: Batch, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """Return time, noise, label drop, and the class token's own noise."""
        draws = denoising_draws(batch, generators, self.interpolant)
        return {**draws, "class_noise": normal(generators, (batch.architecture.cls_width,))}  # (B, z)

    def losses(self, model: Any, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return the velocity loss per sample, the weighted one of the class token, and the weighted alignment."""
        t = self.interpolant.times(batch.draws["time"].flatten())
        noise, class_noise = batch.draws["noise"], batch.draws["class_noise"]
        y = drop_labels(batch.y, batch.draws["drop"], self.cfg_prob, model.null_label)
        whole = [self._present(token) for token in batch.class_tokens]
        token = model.class_token(whole[0])
        answer, hidden = model(
            self.interpolant.mix(batch.x, noise, t),
            t,
            y,
            cls_token=self.interpolant.mix(token, class_noise, t),
            taps=(self.encoder_depth,),
        )
        error = answer.velocity.float() - self.interpolant.velocity(batch.x, noise, t)
        # each sample's own target: for the cosine path the published code broadcasts (B, 1, 1, 1) x (B, z)
        class_error = answer.class_velocity.float() - self.interpolant.velocity(token, class_noise, t)
        terms = {
            "denoising_loss": error.square().flatten(1).mean(1),
            "cls_loss": self.cls_coeff * class_error.square().mean(1),
        }
        if not self.alignment.active(step):
            return terms
        targets = [torch.cat([a[:, None], b], dim=1) for a, b in zip(whole, batch.teachers, strict=True)]
        projected = project(model, batch.modules, hidden[self.encoder_depth])
        coeff = self.proj_coeff * self.alignment.share(step)
        return {**terms, "proj_loss": coeff * cosine_alignment(targets, projected)}

    def _present(self, token: Tensor | None) -> Tensor:
        if token is None:
            raise UserError(f"enc_type {self.enc_type}: every teacher needs a class token, and one of these has none")
        return token


def components(tokens: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return (mean (D,), matrix (D, count)): (tokens - mean) @ matrix has uncorrelated columns of variance 1.

    tokens: (N, D), float64. The columns are the first principal components, their signs fixed.
    """
    mean = tokens.mean(0)
    variances, vectors = torch.linalg.eigh(torch.cov(tokens.T))
    basis = vectors[:, -count:].flip(1)  # the largest first
    basis = basis * basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()  # either sign is an eigenvector
    spread = variances[-count:].flip(0).clamp_min(1e-12).sqrt()
    return mean, basis / spread
