"""Judges of samples: networks (or projections) that turn uint8 images into features and, if they classify, logits."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repa_eval.errors import UserError, first_line
from repa_eval.interfaces.image_source import ImageSource
from repa_eval.registry import Registry
from repa_eval.runtime.hashing import digest_module

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
        return user_extractor(name, path)
    made: Extractor = EXTRACTORS.build(name, path)
    return made


class UserExtractor(Extractor):
    """What the user wrote, under the name of its class (or its attribute `name`)."""

    has_logits = False

    def __init__(self, judge: Any, name: str) -> None:
        self.judge = judge.eval() if isinstance(judge, nn.Module) else judge
        self.name = str(getattr(judge, "name", name))
        self.resize = str(getattr(judge, "resize", "its own"))
        self.digest = digest_module(judge) if isinstance(judge, nn.Module) else _digest_source(type(judge))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """Return Features of uint8 images (B, C, H, W)."""
        return _as_features(self.judge(images), self.name)

    def to(self, device: torch.device | str) -> Extractor:
        """Move it, where it can be moved; it is given images on the CPU."""
        if isinstance(self.judge, nn.Module):
            self.judge.to(device)
        return self


def user_extractor(spec: str, weights: Path | None) -> Extractor:
    """Return the extractor at `module:Class`, called with the file of weights if there is one.

    The current folder counts, as for `python -m`. UserError where it cannot be imported or is not callable.
    """
    module_name, _, attribute = spec.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        made: Any = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"extractor {spec!r} cannot be imported ({first_line(error)}); write module:Class") from error
    if inspect.isclass(made):
        factory: Callable[..., Any] = made
        try:
            made = factory() if weights is None else factory(weights)
        except TypeError as error:
            raise UserError(
                f"extractor {spec!r} cannot be made ({first_line(error)}); it is called with the file of "
                "--extractor-weights, or with nothing"
            ) from error
    if isinstance(made, Extractor):
        return made
    if not callable(made):
        raise UserError(f"extractor {spec!r} is not callable; needed is images uint8 (B, C, H, W) -> features (B, D)")
    return UserExtractor(made, attribute.lower())


def _digest_source(kind: type) -> str:
    try:
        text = inspect.getsource(kind)
    except (OSError, TypeError):
        text = kind.__qualname__
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def features_of(extractor: Extractor, images: Tensor) -> Features:
    """Return the Features of uint8 images (B, C, H, W), B rows of numbers each; UserError where they are none."""
    found = _as_features(extractor(images), extractor.name)
    given = {"features": found.features, "logits": found.logits, "spatial": found.spatial}
    arrays = {kind: _array_of(value) for kind, value in given.items() if value is not None}
    for kind, array in arrays.items():
        if array.ndim != 2 or array.dtype.kind not in "fiu" or len(array) != len(images) or not array.shape[1]:
            shown = f"{kind} of {array.dtype} {array.shape}"
            raise UserError(
                f"extractor {extractor.name} gives {shown} for {len(images)} images; needed are floats (B, D)"
            )
    return Features(**arrays)


def _array_of(value: Any) -> Array:
    array: Array = value.detach().float().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    return (
        array
        if (array.dtype.kind == "f" and array.itemsize > 2) or array.dtype.kind not in "fiu"
        else array.astype("f4")
    )


def _as_features(found: Any, name: str) -> Features:
    """Return Features from what a user's extractor gives: Features, or an array or tensor (B, D)."""
    if isinstance(found, Features):
        return found
    array = _array_of(found)
    if array.ndim != 2 or array.dtype.kind != "f":
        raise UserError(f"extractor {name} gives {array.dtype} {array.shape}; needed are floats (B, D)")
    return Features(array.astype(np.float32))
