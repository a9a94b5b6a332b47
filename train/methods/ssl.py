"""Self-supervised training of a ViT: SimCLR on the mean patch token and masked prediction of an averaged teacher.

Makes the embedded teacher `digits-vit`. Labels are never read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repa_eval.config import option
from repa_eval.interfaces.method import Batch, Method, method
from repa_eval.interfaces.teacher import Teacher
from repa_eval.runtime.seeding import uniform
from repa_eval.train.augmentation import BACKGROUND, view, view_draws


@method("ssl")
@dataclass(frozen=True, kw_only=True)
class SSL(Method):
    """SimCLR (Chen et al. 2020) + masked prediction of EMA features (as in data2vec, Baevski et al. 2022)."""

    systems = ("digits-vit",)
    paper = "2002.05709"
    needs = frozenset({"ema"})
    requires = frozenset({"patch tokens"})
    samples = False

    temperature: float = option(0.2, help="of SimCLR's softmax", least=1e-6)
    mask_coeff: float = option(0.5, help="weight of the masked prediction", least=0)
    mask_max: float = option(0.6, help="largest share of masked patches", least=0, most=1)
    unmasked: float = option(0.3, help="share of views that stay whole", least=0, most=1)
    head_size: int = option(192, help="hidden width of SimCLR's head", least=1)
    embed_size: int = option(64, help="width of SimCLR's embedding", least=1)

    def modules(self, model: Any, teachers: Sequence[Teacher]) -> nn.ModuleDict:
        """Return SimCLR's head and the predictor of masked tokens."""
        width = model.config.hidden_size
        head = nn.Sequential(nn.Linear(width, self.head_size), nn.ReLU(), nn.Linear(self.head_size, self.embed_size))
        return nn.ModuleDict({"head": head, "predictor": nn.Linear(width, width)})

    def draws(self, batch: Batch, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """Return the draws of two views per image, "a." and "b.", and of their masks."""
        draws = {}
        tokens = (batch.x.shape[-1] // 2) ** 2
        for side in "ab":
            made = view_draws(generators, batch.x.shape[1:])
            made["mask_ratio"] = uniform(generators, (2,))
            made["mask_order"] = uniform(generators, (tokens,))
            draws.update({f"{side}.{name}": value for name, value in made.items()})
        return draws

    def losses(self, model: Any, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return the contrastive loss and the weighted masked prediction."""
        sides = [{k[2:]: v for k, v in batch.draws.items() if k.startswith(side)} for side in ("a.", "b.")]
        views = torch.cat([view(batch.x, draws) for draws in sides])  # (2B, C, S, S)
        mask = torch.cat([self._mask(draws) for draws in sides])  # (2B, T) true where hidden
        tokens = model(hide(views, mask))[0][:, 1:]
        pooled = batch.modules["head"](tokens.mean(1))
        assert batch.ema is not None  # asked for by `needs`
        batch.ema.train()  # its batch statistics are those of whole views, which its stored ones are not
        with torch.no_grad():
            target = batch.ema(views)[0][:, 1:]
            target = F.layer_norm(target, target.shape[-1:])
        error = F.smooth_l1_loss(batch.modules["predictor"](tokens), target, reduction="none").mean(-1)
        masked = (error * mask).sum() / mask.sum().clamp_min(1)
        return {"contrastive_loss": ntxent(pooled, self.temperature), "masked_loss": self.mask_coeff * masked}

    def _mask(self, draws: dict[str, Tensor]) -> Tensor:
        ratio, whole = draws["mask_ratio"].unbind(1)
        ratio = torch.where(whole < self.unmasked, 0.0, ratio * self.mask_max)
        rank = draws["mask_order"].argsort(1).argsort(1)
        return rank < (ratio * rank.shape[1])[:, None]


def hide(images: Tensor, mask: Tensor) -> Tensor:
    """Return images (B, C, S, S) with the patches where mask (B, T) is true painted as background."""
    side = int(mask.shape[1] ** 0.5)
    pixels = mask.reshape(-1, 1, side, side).float()
    pixels = F.interpolate(pixels, size=images.shape[-2:], mode="nearest")
    return images * (1 - pixels) + BACKGROUND * pixels


def ntxent(embeddings: Tensor, temperature: float) -> Tensor:
    """Return the NT-Xent loss of embeddings (2B, D) whose rows i and i + B are views of one image."""
    z = F.normalize(embeddings.float(), dim=-1)
    logits = z @ z.T / temperature
    logits.fill_diagonal_(float("-inf"))
    half = len(z) // 2
    partner = torch.arange(len(z), device=z.device).roll(half)
    return F.cross_entropy(logits, partner)
