"""iREPA's head: one convolution over the grid of tokens, which keeps their spatial structure (arXiv 2512.10794)."""

from __future__ import annotations

from math import isqrt

from torch import Tensor, nn

from repa_eval.errors import UserError
from repa_eval.interfaces.projector import projector


@projector("conv")
class ConvProjector(nn.Module):
    """3x3 convolution with padding 1 from hidden states to the teacher's width; the hidden width is not used."""

    def __init__(self, width: int, teacher_width: int, hidden_width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, teacher_width, kernel_size=3, padding=1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (B, N, Z) from tokens (B, N, D) of a square grid, row by row; UserError for another grid."""
        side = isqrt(tokens.shape[1])
        if side**2 != tokens.shape[1]:
            raise UserError(f"projector conv: {tokens.shape[1]} tokens are no square grid; choose projector=mlp")
        maps = tokens.transpose(1, 2).unflatten(2, (side, side))  # (B, D, side, side)
        projected: Tensor = self.conv(maps).flatten(2).transpose(1, 2)
        return projected
