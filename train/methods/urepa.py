"""U-REPA: REPA for diffusion U-Nets (Tian et al. 2025): the middle stage is aligned, with a manifold loss beside it.

The authors' code could not be had: what the paper leaves open is our choice, named in docs/systems-urepa-haste.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repa_eval.config import option
from repa_eval.diffusion.conventions import EPSILON
from repa_eval.diffusion.ddpm_schedule import TRAIN_STEPS
from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.errors import UserError
from repa_eval.interfaces.method import Batch, Method, method, same
from repa_eval.interfaces.teacher import Teacher
from repa_eval.models.shared.layers import TimestepEmbedder, modulate, zero
from repa_eval.models.sit_down import upsample_tokens
from repa_eval.models.udit import UDiTConfig
from repa_eval.train.alignment import named_teachers, project, projectors_for
from repa_eval.train.alignment_schedule import AlignmentSchedule
from repa_eval.train.losses import ddpm_steps, denoising_draws, noise_loss, sample_cosines, velocity_loss

# lambda(t) over lambda of the paper's table 12; t = 1 is noise
SCHEDULES: dict[str, Callable[[Tensor], Tensor]] = {
    "constant": torch.ones_like,
    "noisy": lambda t: (t + 0.5).clamp(min=1),
    "clean": lambda t: (1.5 - t).clamp(min=1),
    "ends": lambda t: torch.maximum(1.5 - 2 * t, 2 * t - 0.5).clamp(max=1),
}


@method("urepa")
@dataclass(frozen=True, kw_only=True)
class Urepa(Method):
    """Denoising loss + proj_coeff x (alignment of a U-Net's middle + manifold_coeff x manifold loss) (equation 5)."""

    systems = ("U-REPA",)
    paper = "2503.18414"
    requires = frozenset({"class labels", "taps", "several grids"})

    enc_type: str = option("dinov2-vit-b", help="teachers, joined by commas")
    encoder_depth: int = option(18, help="block whose output is aligned, 1-based through all stages")
    proj_coeff: float = option(0.5, help="weight of the alignment, manifold loss included")
    manifold_coeff: float = option(3.0, help="weight of the manifold loss within the alignment")
    manifold_pairs: str = option(
        "intra",
        help="pairs of the manifold loss: tokens of an image, tokens of the batch, or mean tokens of its images",
        choices=("intra", "batch", "sample"),
    )
    coeff_schedule: str = option(
        "constant", help="ablation: proj_coeff as a function of t, the paper's table 12", choices=SCHEDULES
    )
    time_aware: bool = option(False, help="ablation: t scales and shifts the projections, the paper's table 11")
    alignment: AlignmentSchedule = AlignmentSchedule()
    interpolant: Interpolant = Interpolant()
    cfg_prob: float = option(0.1, help="probability of dropping the label in training", least=0, most=1)

    def teachers(self) -> list[str]:
        """Return the names in enc_type."""
        return named_teachers(self.enc_type)

    def architecture(self, config: Any, widths: Sequence[int]) -> Any:
        """Return the config with one projector per teacher."""
        of_stages = config.depth if isinstance(config, UDiTConfig) else config.stages
        if not 1 <= self.encoder_depth <= sum(of_stages):
            raise UserError(f"encoder_depth {self.encoder_depth}: this model has blocks 1..{sum(of_stages)}")
        if self.coeff_schedule != "constant" and self.manifold_pairs != "intra":
            raise UserError(
                f"coeff_schedule {self.coeff_schedule} weighs each image; with manifold_pairs {self.manifold_pairs} "
                "pairs have two: choose manifold_pairs=intra or coeff_schedule=constant"
            )
        if isinstance(config, UDiTConfig):
            _check_ddpm(config, self.interpolant)
        return dataclasses.replace(config, class_dropout_prob=self.cfg_prob, z_dims=tuple(widths))

    def aligned_layer(self) -> int:
        """Return encoder_depth."""
        return self.encoder_depth

    def aligned_until(self) -> int | None:
        """Return the end of the alignment."""
        return self.alignment.end

    def active(self, step: int) -> bool:
        """Return whether the alignment goes on."""
        return self.alignment.active(step)

    def modules(self, model: Any, teachers: Sequence[Teacher]) -> nn.ModuleDict:
        """Return the projectors of a model that has none of its own, and what makes projections time-aware."""
        extras = projectors_for(model, teachers, self.encoder_depth)
        if self.time_aware:
            extras["time"] = nn.ModuleList(TimeScale(model.config.hidden_size, teacher.width) for teacher in teachers)
        return extras

    def draws(self, batch: Batch, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """Return time, noise and label drops."""
        return denoising_draws(batch, generators, self.interpolant)

    def losses(self, model: Any, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return the denoising loss per sample and, while it lasts, the weighted terms of the alignment."""
        taps = (self.encoder_depth,) if self.active(step) else ()
        common: dict[str, Any] = {"cfg_prob": self.cfg_prob, "taps": taps}
        if model.native == EPSILON:
            found, hidden = noise_loss(model, batch, **common)
            terms = {"denoising_loss": found["mse"], "vb_loss": found["vb"]}
            told = ddpm_steps(batch.draws["time"])
            t = told / TRAIN_STEPS
        else:
            loss, hidden = velocity_loss(model, batch, self.interpolant, **common)
            terms = {"denoising_loss": loss}
            told = t = self.interpolant.times(batch.draws["time"].flatten())
        if not taps:
            return terms
        projected = self.projections(model, batch, hidden[self.encoder_depth], told)
        coeff = self.proj_coeff * self.alignment.share(step) * SCHEDULES[self.coeff_schedule](t)  # (B,)
        if self.manifold_pairs != "intra":
            coeff = coeff.mean()  # of equal numbers: the manifold loss is one of the whole batch
        gather = same if self.manifold_pairs == "intra" else batch.gather
        pairs = [(gather(y), gather(h)) for y, h in zip(batch.teachers, projected, strict=True)]
        manifold = torch.stack([manifold_loss(y, h, pairs=self.manifold_pairs) for y, h in pairs]).mean(0)
        return {
            **terms,
            "proj_loss": -coeff * sample_cosines(batch.teachers, projected),
            "manifold_loss": self.manifold_coeff * coeff * manifold,
        }

    def projections(self, model: Any, batch: Batch, tokens: Tensor, told: Tensor) -> list[Tensor]:
        """Return (B, T, z) for each teacher from the tokens (B, N, D) of the aligned block: MLP first, then upsampled.

        told (B,): the time as the network is told it.
        """
        projected = project(model, batch.modules, tokens)
        if self.time_aware:
            scales: Any = batch.modules["time"]
            projected = [scale(h, told) for scale, h in zip(scales, projected, strict=True)]
        layer = self.encoder_depth
        grid = model.grid(layer)
        return [
            to_grid(h, grid, isqrt(y.shape[1]), layer=layer) for h, y in zip(projected, batch.teachers, strict=True)
        ]


class TimeScale(nn.Module):
    """(1 + gamma(t)) x + beta(t) of projections x, from an embedding of t of its own; a fresh one changes nothing."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.embed = TimestepEmbedder(width)
        self.scale = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * out))
        zero(self.scale[1])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return (B, N, z) from x (B, N, z) and t (B,), as the network is told it."""
        beta, gamma = self.scale(self.embed(t)).chunk(2, dim=-1)
        return modulate(x, beta, gamma)


def to_grid(projected: Tensor, grid: tuple[int, int], side: int, *, layer: int) -> Tensor:
    """Return projections (B, N, z) of tokens on `grid` on the teacher's side x side: as they are, or doubled.

    UserError otherwise: the paper's student is upsampled, the teacher's tokens are never resized.
    """
    if grid == (side, side):
        return projected
    if (2 * grid[0], 2 * grid[1]) == (side, side):
        return upsample_tokens(projected, grid)
    raise UserError(
        f"encoder_depth {layer}: the tokens there are {grid[0]}x{grid[1]}, the teacher's {side}x{side}; "
        "choose a block with as many, or with half as many a side"
    )


def manifold_loss(target: Tensor, projected: Tensor, *, pairs: str) -> Tensor:
    """Return the mean over pairs i, j of (cos(y_i, y_j) - cos(h_i, h_j))^2 (equations 3 and 4, the sign corrected).

    target y, projected h: (B, T, z); y gets no gradient. pairs, i = j among them: "intra", tokens of an image (B,);
    "batch", all tokens of the batch; "sample", the mean tokens of its images. In float32: half precision loses the
    differences, and autocast would multiply in it.
    """
    with torch.autocast(target.device.type, enabled=False):
        y, h = target.detach().float(), projected.float()
        if pairs == "sample":
            y, h = y.mean(1), h.mean(1)
        y, h = F.normalize(y, dim=-1), F.normalize(h, dim=-1)
        if pairs != "batch":
            return (y @ y.mT - h @ h.mT).square().mean((-2, -1))
        y, h = y.flatten(0, 1), h.flatten(0, 1)  # (BT, z)
        # the same sum by matrices of z x z: those of BT x BT would not fit into memory
        squares = (y.T @ y).square().sum() + (h.T @ h).square().sum() - 2 * (y.T @ h).square().sum()
        return squares / len(y) ** 2


def _check_ddpm(config: UDiTConfig, interpolant: Interpolant) -> None:
    if interpolant != Interpolant():
        raise UserError("U-DiT predicts the noise of DDPM's steps, drawn uniformly; leave interpolant as it is")
    if not config.learn_sigma:
        raise UserError("learn_sigma false: DDPM's loss of U-DiT teaches the variance; set learn_sigma=true")
