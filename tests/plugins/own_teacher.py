"""A teacher of your own: histograms of oriented gradients, one token for each 2x2 square of an 8x8 image."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from repa_eval.plugins import Teacher, Tokens, teacher, to_signed

BINS = 8


class OrientedGradients(Teacher):
    """Token i holds how strong the edges of square i are in each of BINS directions; nothing is learned."""

    width = BINS
    prefix_tokens = 0

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.digest = hashlib.sha256(f"oriented gradients, {BINS} bins".encode()).hexdigest()[:12]
        sobel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
        self.kernels = torch.nn.Parameter(torch.stack([sobel, sobel.T])[:, None], requires_grad=False)  # (2, 1, 3, 3)

    def forward(self, images: Tensor) -> Tokens:
        """Return Tokens (B, H/2 * W/2, BINS) of uint8 images (B, C, H, W)."""
        grey = to_signed(images).mean(1, keepdim=True)
        across, down = F.conv2d(grey, self.kernels, padding=1).unbind(1)  # (B, H, W) each
        place = (torch.atan2(down, across) / (2 * math.pi) + 0.5) * (BINS - 1)  # 0 .. BINS - 1
        votes = F.one_hot(place.round().long(), BINS) * torch.hypot(across, down)[..., None]  # (B, H, W, BINS)
        squares = F.avg_pool2d(votes.permute(0, 3, 1, 2), 2)  # (B, BINS, H/2, W/2)
        return Tokens(patches=squares.flatten(2).transpose(1, 2))


@teacher("oriented-gradients")
def oriented_gradients(name: str, weights: Path | None) -> Teacher:
    """Histograms of oriented gradients; no weights."""
    return OrientedGradients(name)
