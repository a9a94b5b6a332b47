"""Hidden states of a network that is not ours, read by hooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repa_eval.features.capture import Capture, collect
from repa_eval.features.hooks import captured
from repa_eval.interfaces.images import ImageSource

Array = np.ndarray[Any, Any]


@torch.no_grad()
def foreign_features(
    network: nn.Module,
    images: ImageSource,
    *,
    layers: Sequence[str],
    call: Callable[[Tensor, Sequence[int]], object],
    prefix_tokens: int = 0,
    capture: Capture | None = None,
    weights_hash: str = "",
) -> dict[str, Array]:
    """Return {submodule: (N, D) float32} of a network that is not ours, read by hooks that are removed again.

    call: what runs the network on uint8 images (B, C, H, W) and their indices. Outputs are tokens (B, T, D), maps
    (B, C, H, W), read row by row, or vectors (B, D). prefix_tokens: tokens before the patches.
    """
    capture = capture or Capture()

    def forward(pixels: Tensor, indices: Sequence[int], names: Sequence[str]) -> dict[str, Tensor]:
        with captured(network, names) as found:
            call(pixels, indices)
        return {name: capture.pooled(_tokens(found[name]), prefix_tokens) for name in names}

    record = {"kind": "foreign", "weights": weights_hash}
    return collect(images, {name: 0 for name in layers}, forward, record, capture)


def _tokens(output: Tensor) -> Tensor:
    """Return tokens (B, T, D) of what a module answered."""
    if output.ndim == 4:
        return output.flatten(2).transpose(1, 2)
    return output.unsqueeze(1) if output.ndim == 2 else output
