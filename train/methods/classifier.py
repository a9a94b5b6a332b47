"""Supervised training of a classifier on noised views: makes the embedded judge `digits`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from repa_eval.config import option
from repa_eval.interfaces.method import Batch, Method, method
from repa_eval.train.augmentation import view, view_draws


@method("classifier")
@dataclass(frozen=True, kw_only=True)
class Classifier(Method):
    """Cross-entropy on noised views; its features judge samples and are never aligned to."""

    systems = ("digits-judge",)
    requires = frozenset({"class logits"})
    samples = False

    brightness: float = option(0.2, help="largest change of brightness of a view", least=0)
    noise: float = option(0.3, help="largest standard deviation of the noise of a view", least=0)

    def draws(self, batch: Batch, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """Return the draws of one view per image."""
        return view_draws(generators, batch.x.shape[1:])

    def losses(self, model: Any, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return the cross-entropy per sample."""
        logits, _ = model(view(batch.x, batch.draws, brightness=self.brightness, noise=self.noise))
        return {"cross_entropy": F.cross_entropy(logits, batch.y, reduction="none")}
