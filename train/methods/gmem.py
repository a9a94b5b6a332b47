"""GMem: what a network would have to remember lies in a bank of teacher features beside it (arXiv 2412.08781).

Time runs as everywhere here, 1 = noise; the network, which counts the other way, is turned at the edge.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from repa_eval.config import option
from repa_eval.diffusion.conventions import as_project_convention
from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.errors import UserError
from repa_eval.interfaces.image_source import ImageSource, chunks
from repa_eval.interfaces.method import Batch, Method, Stage, method
from repa_eval.interfaces.teacher import Teacher
from repa_eval.memory_bank.bank import Bank, FullBank, compressed
from repa_eval.runtime.seeding import normal, uniform
from repa_eval.train.alignment import check_layer, named_teachers, project
from repa_eval.train.alignment_schedule import AlignmentSchedule
from repa_eval.train.given_features import tokens_of
from repa_eval.train.losses import cosine_alignment

AT_ONCE = 256  # images that a teacher sees at once while the bank is built


@method("gmem")
@dataclass(frozen=True, kw_only=True)
class GMem(Method):
    """Velocity loss + its cosine over channels + proj_coeff x alignment, conditioned on a teacher's class token."""

    systems = ("GMem",)
    paper = "2412.08781"
    needs = frozenset()  # no labels anywhere
    requires = frozenset({"snippets", "taps", "one grid"})

    enc_type: str = option("dinov2-vit-b", help="teachers, joined by commas; the snippets are the first one's")
    encoder_depth: int = option(4, help="block whose output is aligned, 1-based")
    proj_coeff: float = option(0.5, help="weight of the alignment")
    cosine_coeff: float = option(1.0, help="weight of the cosine between velocities, over channels; 0 = none")
    alignment: AlignmentSchedule = AlignmentSchedule()
    interpolant: Interpolant = Interpolant(weighting="lognormal")
    snippet: str = option(
        "cls", help="what of the teacher: its class token, or the mean of its patches", choices=("cls", "mean")
    )
    bank_form: str = option(
        "full",
        help="memory bank of the training images that travels with the checkpoint; none: sampling needs --bank",
        choices=("full", "svd", "none"),
    )
    latent_dim: int = option(64, help="directions of the bank's svd form", least=1)

    def teachers(self) -> list[str]:
        """Return the names in enc_type."""
        return named_teachers(self.enc_type, hint="GMem takes its snippets from one")

    @property
    def bank(self) -> str:
        """What travels with the checkpoint, in words."""
        return f"svd, {self.latent_dim} directions" if self.bank_form == "svd" else self.bank_form

    def stages(self) -> Sequence[Stage]:
        """Return the one training; without a bank beside it, the network has nothing to draw from."""
        return (Stage(method=self, samples=self.bank_form != "none"),)

    def architecture(self, config: Any, widths: Sequence[int]) -> Any:
        """Return the config for snippets of the first teacher, one projector per teacher, and the bank's form."""
        check_layer("encoder_depth", self.encoder_depth, config.depth)
        dims = self.latent_dim if self.bank_form == "svd" else 0
        if dims > widths[0]:
            raise UserError(f"latent_dim {dims}: snippets of {self.teachers()[0]} have {widths[0]} entries")
        return dataclasses.replace(
            config,
            z_dims=tuple(widths),
            condition_size=widths[0],
            bank_size=0 if self.bank_form == "none" else config.bank_size,
            bank_dim=dims,
        )

    def aligned_layer(self) -> int:
        """Return encoder_depth."""
        return self.encoder_depth

    def aligned_until(self) -> int | None:
        """Return the end of the alignment."""
        return self.alignment.end

    @torch.no_grad()
    def prepare(self, model: Any, images: ImageSource, teachers: Sequence[Teacher]) -> None:
        """Put the memory bank of the training images into the model, for sampling: the losses do not read it."""
        if model.memory is None:
            return
        found = []
        for rows in chunks(len(images), AT_ONCE):
            tokens = tokens_of(images, rows, teachers[0])
            found.append(self._snippets(tokens.cls, tokens.patches).float().cpu())
        bank: Bank = FullBank(torch.cat(found))
        bank = compressed(bank, self.latent_dim) if self.bank_form == "svd" else bank
        stored = bank.tensors()
        for name, buffer in model.memory.tensors().items():
            buffer.copy_(stored[name])

    def draws(self, batch: Batch, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """Return time, noise, and what decides which entries of the snippet are dropped."""
        time = uniform(generators) if self.interpolant.weighting == "uniform" else normal(generators, ())
        return {
            "time": time,  # (B,) raw draw, see Interpolant.times
            "noise": normal(generators, batch.x.shape[1:]),  # (B, C, H, W)
            "dropout": uniform(generators, (batch.architecture.condition_size,)),  # (B, S)
        }

    def losses(self, model: Any, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return the squared error and the cosine distance of the velocity per sample, and the weighted alignment.

        Snippet, target and latent are of one and the same image: in the published loader three independent coins
        decide which of them are mirrored.
        """
        t, noise = self.interpolant.times(batch.draws["time"].flatten()), batch.draws["noise"]
        snippets = F.normalize(self._snippets(batch.class_tokens[0], batch.teachers[0]).float(), dim=1)
        keep = (batch.draws["dropout"] >= model.config.condition_dropout).to(snippets)
        x_t = self.interpolant.mix(batch.x, noise, t)
        answer, hidden = as_project_convention(model)(x_t, t, snippets, keep=keep, taps=(self.encoder_depth,))
        predicted, target = answer.float(), self.interpolant.velocity(batch.x, noise, t)
        cosine = F.cosine_similarity(predicted, target, dim=1)  # (B, H, W)
        terms = {
            "denoising_loss": (predicted - target).square().flatten(1).mean(1),
            "cosine_loss": self.cosine_coeff * (1 - cosine).flatten(1).mean(1),
        }
        if not self.alignment.active(step):
            return terms
        projected = project(model, batch.modules, hidden[self.encoder_depth])
        coeff = self.proj_coeff * self.alignment.share(step)
        return {**terms, "proj_loss": coeff * cosine_alignment(batch.teachers, projected)}

    def _snippets(self, cls: Tensor | None, patches: Tensor) -> Tensor:
        """Return raw snippets (B, D)."""
        if self.snippet == "mean":
            return patches.mean(1)
        if cls is None:
            raise UserError(f"{self.teachers()[0]} has no class token to take snippets from: choose snippet=mean")
        return cls
