"""RePaViT: a frozen teacher made cheaper. Its feed-forwards get idle channels and batch norms, and are then distilled
against the teacher itself; `repa-eval reparam` merges them afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repa_eval.config import option
from repa_eval.errors import UserError
from repa_eval.interfaces.image_source import ImageSource
from repa_eval.interfaces.method import Batch, Method, method
from repa_eval.interfaces.teacher import Teacher, split_names
from repa_eval.runtime.seeding import permutation, uniform
from repa_eval.teachers.shared.preprocessing import pixels_of
from repa_eval.train.conversion import config_of, convert
from repa_eval.train.losses import cosine_alignment


@method("repavit")
@dataclass(frozen=True, kw_only=True)
class RePaViT(Method):
    """A ViT teacher with idle channels and batch norms, distilled from itself to be merged (sections 3 and 4)."""

    systems = ("RePaViT",)
    paper = "2505.21847"
    needs = frozenset()
    requires = frozenset({"idle channels"})
    samples = False
    finish = "repa-eval reparam {checkpoint} --out merged/{run}.pt"

    enc_type: str = option("digits-vit", help="the teacher that is converted and distilled: digits-vit or a plain ViT")
    calibration_images: int = option(512, help="training images that the conversion is fitted on", least=2)
    cosine_coeff: float = option(1.0, help="weight of one minus the cosine to the teacher's tokens", least=0)
    mse_coeff: float = option(1.0, help="weight of the squared error over the tokens' variance", least=0)
    drop_path: float = option(0.0, help="share of branches dropped in training (stochastic depth)", least=0, most=1)

    def teachers(self) -> list[str]:
        """Return the one teacher; UserError for none or several."""
        names = split_names(self.enc_type)
        if len(names) != 1:
            raise UserError(f"enc_type {self.enc_type!r}: one teacher is converted, name one")
        return names

    def fitted(self, config: Any, images: Any, teachers: Sequence[Teacher]) -> Any:
        """Return the config with the teacher's sizes and preprocessing; its idle channels are those asked for."""
        if not 0 <= config.idle_ratio <= 1:
            raise UserError(f"idle_ratio {config.idle_ratio}: it is a share, 0 to 1")
        if not 0 <= self.drop_path < 1:
            raise UserError(f"drop_path {self.drop_path}: it is a share, at least 0 and below 1")
        return config_of(teachers[0], images.pixels([0]), config)

    def prepare(self, model: nn.Module, images: ImageSource, teachers: Sequence[Teacher]) -> None:
        """Convert the teacher on some training images."""
        chosen = permutation(len(images), "calibration")[: self.calibration_images]
        convert(model, teachers[0], images.pixels(chosen.tolist()))  # type: ignore[arg-type]

    def trainable(self, model: nn.Module, modules: nn.ModuleDict) -> Iterable[nn.Parameter]:
        """Yield the parameters of everything but a stem that keeps the teacher's statistics."""
        yield from (p for p in model.parameters() if p.requires_grad)

    def draws(self, batch: Batch, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """Return what decides which branches are dropped: one number per block for attention and feed-forward."""
        return {"drop_path": uniform(generators, (batch.architecture.depth, 2))}

    def losses(self, model: Any, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return the two distances to the teacher's tokens, its class token one of them."""
        keep = None
        if self.drop_path:
            keep = (batch.draws["drop_path"] >= self.drop_path).float() / (1 - self.drop_path)
        tokens = model.scaled(model(pixels_of(model.config)(batch.images), keep=keep)[0]).float()
        [target], [cls] = batch.teachers, batch.class_tokens
        patches = tokens[:, model.prefix_tokens :]
        if cls is not None:
            target, patches = torch.cat([cls[:, None], target], dim=1), torch.cat([tokens[:, :1], patches], dim=1)
        error = (patches - target.float()).square().mean((1, 2)) / target.float().var((1, 2)).clamp_min(1e-6)
        return {
            "cosine_loss": self.cosine_coeff * (1 + cosine_alignment([target], [patches])),
            "mse_loss": self.mse_coeff * error,
        }
