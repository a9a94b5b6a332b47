"""Attention distillation (HASTE, arXiv 2505.16792): a student's attention logits against a frozen teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from repa_eval.errors import UserError


def attention_losses(targets: Sequence[Tensor], logits: Sequence[Tensor]) -> Tensor:
    """Return one cross-entropy for each pair of layers (P,): -sum_k softmax(target)_k log softmax(logits)_k.

    targets, logits: (B, heads, T, T), rows queries, columns keys; the mean is over batch, heads and queries. Heads
    0..min-1 of both are compared, index by index: the first 12 of SiT-XL's 16 with DINOv2-B's 12, as published.
    In float32: half precision would give -inf. Not a divergence: its least value is the teacher's entropy.
    """
    losses = []
    for target, own in zip(targets, logits, strict=True):
        heads = min(target.shape[1], own.shape[1])
        theirs = target[:, :heads].detach().float().softmax(-1)
        losses.append(-(theirs * own[:, :heads].float().log_softmax(-1)).sum(-1).mean())
    return torch.stack(losses)


def fit_features(tokens: Tensor, count: int, *, resize: bool) -> Tensor:
    """Return tokens (B, N, D) as (B, count, D): as they are if N = count, else bilinear; UserError without `resize`."""
    if tokens.shape[1] == count:
        return tokens
    _check_grids(tokens.shape[1], count, resize)
    return _resized(tokens.mT, count).mT


def fit_logits(logits: Tensor, count: int, *, resize: bool) -> Tensor:
    """Return logits (B, heads, N, N) as (B, heads, count, count), the keys' axis first, then the queries'."""
    if logits.shape[-1] == count:
        return logits
    _check_grids(logits.shape[-1], count, resize)
    return _resized(_resized(logits, count).mT, count).mT


def _resized(values: Tensor, count: int) -> Tensor:
    """Return (..., count) from (..., N), both a square grid row by row, bilinear."""
    own, side = isqrt(values.shape[-1]), isqrt(count)
    maps = values.reshape(1, -1, own, own)
    fitted = F.interpolate(maps, size=(side, side), mode="bilinear", align_corners=False)
    return fitted.reshape(*values.shape[:-1], count)


def _check_grids(own: int, theirs: int, resize: bool) -> None:
    if not resize:
        raise UserError(f"the student has {own} tokens, the teacher {theirs}; set resize=true to resize the student's")
    if isqrt(own) ** 2 != own or isqrt(theirs) ** 2 != theirs:
        raise UserError(f"{own} tokens cannot be resized to {theirs}: both must be squares")
