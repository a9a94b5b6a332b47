"""Rotary positions on two axes as U-DiT has them (arXiv 2405.02730), for grids of any size: no table is stored."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from repa_eval.errors import UserError
from repa_eval.models.shared.rotary import quarter_turn


def axial_rotation(head_width: int, height: int, width: int, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return what rotates queries and keys (..., height*width, head_width) by the place of their token."""
    cos, sin = _tables(head_width, height, width, device)

    def rotate(q: Tensor) -> Tensor:
        return (q * cos + quarter_turn(q) * sin).to(q.dtype)

    return rotate


def axial_angles(head_width: int, height: int, width: int) -> Tensor:
    """Return angles (height*width, head_width), float64, place * 10000^(-4i/head_width) for i < head_width/4.

    Neighbouring channels form a pair that turns by one angle. The pairs alternate between the axes: x0, y0, x1, y1, ..
    with x = n mod width, y = n div width of token n.
    """
    check_head_width(head_width)
    omega = 10000.0 ** -(torch.arange(0, head_width, 4, dtype=torch.float64, device="cpu") / head_width)
    y, x = torch.meshgrid(*(torch.arange(side, device="cpu") for side in (height, width)), indexing="ij")
    axes = torch.stack([x.flatten(), y.flatten()], dim=-1)  # (N, 2)
    pairs = (axes[:, None] * omega[:, None]).flatten(1)  # (N, frequencies, 2) -> (N, head_width / 2)
    return pairs.repeat_interleave(2, dim=-1)


def check_head_width(head_width: int) -> None:
    """UserError unless a head can be rotated by pairs of channels on two axes."""
    if head_width % 4:
        raise UserError(f"a head's width {head_width} is not a multiple of 4, which rotary positions need")


@functools.lru_cache(maxsize=64)
def _tables(head_width: int, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    # the cache outlives an inference_mode, whose tensors no later training step could use
    with torch.inference_mode(False):
        angles = axial_angles(head_width, height, width)
        return angles.cos().float().to(device), angles.sin().float().to(device)
