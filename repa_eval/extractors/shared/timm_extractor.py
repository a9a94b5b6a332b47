"""timm networks as judges: published weights read without executing anything, loaded strictly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models import get_pretrained_cfg
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from repa_eval.errors import Failure, first_line
from repa_eval.interfaces.extractor import Array, Extractor, Features
from repa_eval.runtime.hashing import digest_module
from repa_eval.weight_files.download import fetch
from repa_eval.weight_files.state_dicts import State, convert, load_strictly, read_state

MICRO = 16  # images at a time on a CPU


class VisionJudge(Extractor):
    """A network behind its own preprocessing: pixels (uint8 images -> float32), then one vector an image."""

    has_logits = False

    def __init__(self, name: str, network: nn.Module, pixels: Callable[[Tensor], Tensor], resize: str) -> None:
        self.name, self.resize, self._pixels = name, resize, pixels
        self.digest = digest_module(network)
        self.network: Any = network.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """Return Features of uint8 images (B, C, H, W), their pixels resized on the CPU."""
        device = next(self.network.parameters()).device
        step = MICRO if device.type == "cpu" else len(images)
        parts: list[Array] = [
            self.network(self._pixels(part).to(device)).float().cpu().numpy() for part in images.split(step)
        ]
        return Features(np.concatenate(parts))

    def to(self, device: torch.device | str) -> VisionJudge:
        """Move the network."""
        self.network.to(device)
        return self


def load_weights(name: str, network: nn.Module, tag: str, weights: Path | None, file: str, drop: str) -> None:
    """Copy published weights into a timm network; Failure in one line for a file that does not hold them.

    weights: a file; None: those of timm's `tag`, from the cache or the network. file: the one to ask for. drop:
    pattern of names that may be there and are not used.
    """
    path, owner = _published(name, tag, file) if weights is None else weights, f"extractor {name}"
    state: State = read_state(path, owner=owner, names=network.state_dict())
    state = convert(checkpoint_filter_fn, state, network, owner=owner, path=path)
    load_strictly(network, state, drop=drop, owner=owner, path=path)


def _published(name: str, tag: str, file: str) -> Path:
    try:
        return fetch(get_pretrained_cfg(tag))
    except OSError as error:
        raise Failure(
            f"extractor {name} has no weights here ({first_line(error)}): fetch {file} and name it with "
            "--extractor-weights"
        ) from error
