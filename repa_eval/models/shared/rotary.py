"""The fixed 2-D rotary position table of LightningDiT, which ERW uses too (RoFormer, arXiv 2104.09864, on two axes)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repa_eval.errors import UserError


class FastRope(nn.Module):
    """Rotates queries and keys by the place of their token: one table for all blocks and heads.

    freqs_cos, freqs_sin (side^2, head_width): persistent buffers, since the published state dicts hold them. The first
    half of a head turns by the token's row, the second by its column (the reverse of the sin-cos table's order).
    """

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, head_width: int, side: int) -> None:
        super().__init__()
        angles = rotary_angles(head_width, side)
        self.register_buffer("freqs_cos", angles.cos().float())
        self.register_buffer("freqs_sin", angles.sin().float())

    def forward(self, q: Tensor) -> Tensor:
        """Return queries or keys q (B, heads, N, head width), rotated, in their own dtype."""
        return (q * self.freqs_cos + quarter_turn(q) * self.freqs_sin).to(q.dtype)


def rotary_angles(head_width: int, side: int) -> Tensor:
    """Return the angles (side^2, head_width), float64: place * 10000^(-2j/d), d = head_width/2, each value twice."""
    if head_width % 4:
        raise UserError(f"a head's width {head_width} is not a multiple of 4, which the rotary table needs")
    half = head_width // 2
    omega = 10000.0 ** -(torch.arange(0, half, 2, dtype=torch.float64, device="cpu") / half)
    angles = torch.arange(side, dtype=torch.float64, device="cpu")[:, None] * omega  # (side, half / 2)
    angles = angles.repeat_interleave(2, dim=1)  # (side, half): both numbers of a pair turn by one angle
    rows = angles[:, None].expand(side, side, half)
    columns = angles[None].expand(side, side, half)
    return torch.cat([rows, columns], dim=-1).reshape(side * side, head_width)


def quarter_turn(x: Tensor) -> Tensor:
    """Return x (..., D) with each interleaved pair (a, b) turned to (-b, a)."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([-b, a], dim=-1).flatten(-2)
