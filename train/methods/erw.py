"""ERW: the first blocks learn the teacher's features before any diffusion training (arXiv 2504.10188).

Stage 1 trains a stub of `l2r_depth` blocks on clean latents; stage 2 the whole model, with an alignment that fades.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repa_eval.config import option
from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.diffusion.model import DiffusionModel
from repa_eval.errors import UserError
from repa_eval.interfaces.method import Batch, Method, Stage, method, take_over_weights
from repa_eval.models.sit_erw import transfer
from repa_eval.runtime.seeding import uniform
from repa_eval.train.alignment import check_layer, named_teachers
from repa_eval.train.alignment_schedule import AlignmentSchedule
from repa_eval.train.losses import cosine_alignment, denoising_draws, drop_labels, sample_cosines, velocity_loss

PUBLISHED_START = ((1152, 6.0), (1024, 3.0), (0, 1.0))  # least width of the tokens (XL, L, else) -> weight


@method("erw")
@dataclass(frozen=True, kw_only=True)
class ERW(Method):
    """Warm-up of the first blocks on the teacher's features, then velocity loss + an alignment that fades."""

    systems = ("ERW",)
    paper = "2504.10188"
    requires = frozenset({"velocity", "class labels", "taps", "one grid", "stub"})
    start_weights = "online"  # the published trainer moves the trained weights of stage 1, not their average

    stage: str = option("both", help="what is trained: both in turn, or one alone", choices=("both", "warmup", "full"))
    enc_type: str = option("dinov2-vit-b", help="teachers, joined by commas")
    stage1_steps: int = option(10_000, help="steps of stage 1, counted in max_steps", least=1)
    l2r_depth: int = option(4, help="blocks that stage 1 trains", least=1)
    proj_coeff: float = option(0.5, help="weight of the alignment in stage 1")
    warmup_loss: str = option(
        "mean",
        help="stage 1: the mean over the batch (paper), or the published code's last sample over the batch size",
        choices=("mean", "last-sample"),
    )
    placement: int = option(0, help="blocks of the full model before the warmed ones (the paper's ablation)", least=0)
    encoder_depth: int = option(14, help="block whose output is aligned in stage 2, 1-based")
    start_coeff: float = option(
        0.0, help="weight of the alignment as stage 2 begins; 0: the published 6 (XL), 3 (L), 1", least=0
    )
    half_life: int = option(50_000, help="steps in which that weight halves", least=1)
    alignment: AlignmentSchedule = AlignmentSchedule()
    interpolant: Interpolant = Interpolant()
    cfg_prob: float = option(0.1, help="probability of dropping the label in training", least=0, most=1)

    def teachers(self) -> list[str]:
        """Return the names in enc_type."""
        return named_teachers(self.enc_type)

    def stages(self) -> Sequence[Stage]:
        """Return stage 1, whose stub generates nothing, and stage 2; or the one that `stage` names."""
        warmup = dataclasses.replace(self, stage="warmup", encoder_depth=self.l2r_depth)
        if self.stage == "warmup":
            return (Stage(method=warmup, samples=False),)
        if self.stage == "full":
            return (Stage(method=self),)
        return (Stage(method=warmup, until=self.stage1_steps, samples=False), Stage(method=self))

    def architecture(self, config: Any, widths: Sequence[int]) -> Any:
        """Return the config of the stub or of the whole model, with one projector per teacher."""
        common = {"class_dropout_prob": self.cfg_prob, "z_dims": tuple(widths)}
        if self.stage == "warmup":
            return dataclasses.replace(config, warmup=True, use_rope=False, depth=self.l2r_depth, **common)
        if config.warmup:
            raise UserError("this recipe holds the architecture of stage 1; take that of the whole run")
        check_layer("encoder_depth", self.encoder_depth, config.depth)
        if self.placement + self.l2r_depth > config.depth:
            raise UserError(
                f"placement {self.placement} and l2r_depth {self.l2r_depth}: this model has {config.depth} blocks"
            )
        return dataclasses.replace(config, **common)

    def aligned_layer(self) -> int:
        """Return encoder_depth."""
        return self.encoder_depth

    def aligned_until(self) -> int | None:
        """Return the end of the alignment in stage 2."""
        return None if self.stage == "warmup" else self.alignment.end

    def active(self, step: int) -> bool:
        """Return whether the teachers are needed: in stage 1, and while the alignment of stage 2 goes on."""
        return self.stage == "warmup" or self.alignment.active(step)

    def take_over(self, model: nn.Module, before: Any) -> None:
        """Copy the stub into the full model, `placement` blocks further on, or a whole network as it is.

        The optimiser's state is not carried.
        """
        if isinstance(before, DiffusionModel) and before.stub:
            transfer(before, model, first_block=self.placement)
        else:
            take_over_weights(model, before)

    def draws(self, batch: Batch, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """Return time, noise and label drop; in stage 1 there is only the last."""
        if self.stage == "warmup":
            return {"drop": uniform(generators)}
        return denoising_draws(batch, generators, self.interpolant)

    def losses(self, model: Any, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return the weighted alignment, in stage 2 after the velocity loss per sample."""
        if self.stage == "warmup":
            return {"proj_loss": self.proj_coeff * self._warmup(model, batch)}
        taps = (self.encoder_depth,) if self.active(step) else ()
        loss, hidden = velocity_loss(model, batch, self.interpolant, cfg_prob=self.cfg_prob, taps=taps)
        if not taps:
            return {"denoising_loss": loss}
        projected = [head(hidden[self.encoder_depth]) for head in model.projectors]
        start = self.start_coeff or published_start(model.config.hidden_size)
        weight = fading(start, step, warmup=self.stage1_steps if self.stage == "both" else 0, half_life=self.half_life)
        weight *= self.alignment.share(step)
        return {"denoising_loss": loss, "proj_loss": weight * cosine_alignment(batch.teachers, projected)}

    def _warmup(self, model: Any, batch: Batch) -> Tensor:
        y = drop_labels(batch.y, batch.draws["drop"], self.cfg_prob, model.null_label)
        # the clean latent at t = 0, which is data
        _, hidden = model(batch.x, torch.zeros(len(y), device=y.device), y, taps=(self.l2r_depth,))
        projected = [head(hidden[self.l2r_depth]) for head in model.projectors]
        if self.warmup_loss == "mean":
            return cosine_alignment(batch.teachers, projected)
        return -sample_cosines(batch.teachers, projected)[-1] / len(y)


def published_start(hidden_size: int) -> float:
    """Return the published weight as stage 2 begins: 6 for XL, 3 for L, 1 for smaller models."""
    return next(weight for least, weight in PUBLISHED_START if hidden_size >= least)


def fading(start: float, step: int, *, warmup: int, half_life: int = 50_000) -> float:
    """Return start * 2^(-(step - warmup) / half_life), start before it. step: updates since the start of stage 1."""
    return float(start * 2.0 ** (-max(step - warmup, 0) / half_life))
