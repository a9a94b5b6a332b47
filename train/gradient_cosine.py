"""Gradients of single loss terms: how far two of them point the same way."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


def gradient_of(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the gradient of a scalar loss as one vector, float64, summed over all processes; the graph is kept.

    A parameter that the loss does not depend on counts as 0. Nothing is added to `.grad`.
    """
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    parts = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
    whole = torch.cat([part.flatten().double() for part in parts])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(whole)
    return whole


def gradient_cosine(first: Tensor, second: Tensor | None) -> Tensor:
    """Return the cosine of two gradient vectors, NaN if there is no second one."""
    if second is None:
        return torch.full((), torch.nan, dtype=first.dtype, device=first.device)
    return first @ second / (first.norm() * second.norm())
