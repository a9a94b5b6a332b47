"""A user's own extractor, named `module:Class`: any callable from uint8 images to features."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repa_eval.errors import UserError, first_line
from repa_eval.extractors._registry import Extractor, Features
from repa_eval.hashing import digest_module


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


def _as_features(found: Any, name: str) -> Features:
    """Return Features from what a user's extractor gives: Features, or an array or tensor (B, D)."""
    if isinstance(found, Features):
        return found
    array = found.detach().float().cpu().numpy() if isinstance(found, torch.Tensor) else np.asarray(found)
    if array.ndim != 2 or array.dtype.kind != "f":
        raise UserError(f"extractor {name} gives {array.dtype} {array.shape}; needed are floats (B, D)")
    return Features(array.astype(np.float32))
