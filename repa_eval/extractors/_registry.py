"""Judges of samples: networks (or projections) that turn uint8 images into features and, if they classify, logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repa_eval.data._registry import ImageSource
from repa_eval.errors import UserError
from repa_eval.registry import Registry

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Features:
    """features (N, D) float32; for classifiers logits (N, K), and where there is a spatial map that too, (N, S)."""

    features: Array
    logits: Array | None = None
    spatial: Array | None = None

    def __len__(self) -> int:
        return len(self.features)


class Extractor(ABC):
    """name: as in metric names (fd_<name>); digest: hash of its weights; resize: what it does to an image's size."""

    name: str
    digest: str
    resize: str = "none"
    has_logits: bool = True
    has_spatial: bool = False

    def prepare(self, reference: ImageSource) -> None:  # noqa: B027  (most have nothing to fit)
        """Fit to the reference, where the extractor has something to fit. Called before any image is judged."""

    @abstractmethod
    def __call__(self, images: Tensor) -> Features:
        """Return the Features of uint8 images (B, C, H, W)."""

    def to(self, device: torch.device | str) -> Extractor:
        """Move to a device, where the extractor computes on one."""
        return self


Builder = Callable[[Path | None], Extractor]
EXTRACTORS: Registry[Builder] = Registry("extractor", "repa_eval.extractors", group="repa_eval.extractors")


def extractor(name: str) -> Callable[[Builder], Builder]:
    """Register a builder: (file of weights or None) -> Extractor."""
    return EXTRACTORS.register(name)


def load_extractor(name: str, weights: str | Path | None = None) -> Extractor:
    """Return the extractor called `name`, or a user's own at `module:Class`; weights: a file that replaces its own."""
    path = None if weights is None else Path(weights)
    if path is not None and not path.is_file():
        raise UserError(f"extractor weights {str(weights)!r} do not exist")
    if ":" in name:
        from repa_eval.extractors._user import user_extractor

        return user_extractor(name, path)
    return EXTRACTORS.get(name)(path)
