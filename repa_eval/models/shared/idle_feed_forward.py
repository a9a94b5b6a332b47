"""RePaViT's feed-forward (arXiv 2505.21847): idle channels between two batch norms, merged exactly into three matrices.

Idle channels skip the activation, so that everything along them is linear end to end: after training it collapses,
with both norms and the residual, into one square matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repa_eval.config import option
from repa_eval.errors import UserError
from repa_eval.interfaces.pixel_statistics import IMAGENET_MEAN, IMAGENET_STD

BATCH_NORM, LAYER_NORM = "BatchNorm", "LayerNorm"
STATIC, LINEAR = "static", "linear"
Rounding = Callable[[float], int]


@dataclass(frozen=True, kw_only=True)
class PixelConfig:
    """How uint8 images become what an encoder reads; its side is the encoder's input_size.

    rule: whole = the whole image resized (antialiased), then normalised; official, official-resize-first = the REPA
    trainer's two ways, for images of `resolution` only; signed = [-1, 1], no resizing.
    """

    rule: str = option("whole", help="way", choices=("whole", "official", "official-resize-first", "signed"))
    mean: tuple[float, ...] = option(IMAGENET_MEAN, help="subtracted per channel")
    std: tuple[float, ...] = option(IMAGENET_STD, help="divided by, per channel")
    mode: str = option("bicubic", help="interpolation of whole")
    resolution: int = option(0, help="official: side of the images, 0 = any")


@dataclass(frozen=True, kw_only=True)
class IdleConfig:
    """What every encoder with these feed-forwards has among its arguments."""

    mlp_ratio: float = option(4.0, help="hidden width of the feed-forward over its width")
    feature_norm: str = option(BATCH_NORM, help="norm of the feed-forward", choices=(BATCH_NORM, LAYER_NORM))
    channel_idle: bool = option(True, help="some hidden channels skip the activation")
    idle_ratio: float = option(0.75, help="share of the hidden channels that do")
    merged: bool = option(False, help="the feed-forwards are merged")
    active_channels: tuple[int, ...] = option((), help="by block; empty: as idle_ratio says")
    pixels: PixelConfig = PixelConfig()


def active_of(hidden: int, idle_ratio: float, *, rounding: Rounding = math.ceil) -> int:
    """Return how many of `hidden` channels are activated; python floats, as published: 192 at 5/6 gives 33, not 32."""
    return min(hidden, max(0, rounding(hidden * (1 - idle_ratio))))


def linear_ratios(idle_ratio: float, depth: int) -> list[float]:
    """Return the idle ratio of each block by the published "linear" rule; the last block is not idle at all."""
    rising = [(2 * idle_ratio - 1) + (2 - 2 * idle_ratio) * (i + 1) / (depth - 1) for i in range(depth - 1)]
    return [*rising, 0.0]


def actives(config: IdleConfig, hidden: Sequence[int], ratios: Sequence[float], **how: Any) -> list[int]:
    """Return the number of active channels of every block, `hidden` its hidden widths, `ratios` its idle ratios."""
    if config.active_channels:
        if len(config.active_channels) != len(hidden):
            raise UserError(
                f"active_channels names {len(config.active_channels)} blocks; this encoder has {len(hidden)}"
            )
        return list(config.active_channels)
    if not config.channel_idle:
        return list(hidden)
    return [active_of(width, ratio, **how) for width, ratio in zip(hidden, ratios, strict=True)]


class FeedForward(nn.Module):
    """The training form, residual inside: norm, fc1, GELU on the first `active` channels, norm, fc2.

    norm: BatchNorm (norm1 and norm2, statistics over all tokens) or LayerNorm (one `norm`, and then the merge does not
    exist). maps: 1x1 convolutions on (B, C, H, W) instead of tokens (B, N, C). layer_scale: a vector `ls` (PoolFormer).
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        active: int,
        *,
        norm: str = BATCH_NORM,
        maps: bool = False,
        layer_scale: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        linear: Callable[..., nn.Module] = partial(nn.Conv2d, kernel_size=1) if maps else nn.Linear
        self.active, self.maps = active, maps
        self.fc1 = linear(width, hidden, bias=bias)
        self.fc2 = linear(hidden, width, bias=bias)
        self.norm2: nn.Module = nn.Identity()
        if norm == BATCH_NORM:
            batch_norm = nn.BatchNorm2d if maps else nn.BatchNorm1d
            self.norm1: nn.Module = batch_norm(width)
            self.norm2 = batch_norm(hidden)
        elif maps:
            self.norm1 = nn.GroupNorm(1, width)  # the published LayerNorm of maps, under this name
        else:
            self.norm = nn.LayerNorm(width)
        self.ls = nn.Parameter(torch.full((width,), 1e-5)) if layer_scale else None

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return a tensor of the shape of x; keep (B,) multiplies each sample's branch (stochastic depth)."""
        first = self.norm if hasattr(self, "norm") else self.norm1
        h = self.activated(self.fc1(_over_channels(first, x)))
        y: Tensor = self.fc2(_over_channels(self.norm2, h))
        if self.ls is not None:
            y = y * (self.ls[:, None, None] if self.maps else self.ls)
        return x + (y if keep is None else y * keep.view(-1, *[1] * (y.ndim - 1)))

    def activated(self, h: Tensor) -> Tensor:
        """Return h with GELU on its first `active` channels."""
        axis, channels = (1, h.shape[1]) if self.maps else (-1, h.shape[-1])
        if self.active == channels:
            return F.gelu(h)
        active, idle = h.split([self.active, channels - self.active], dim=axis)
        return torch.cat([F.gelu(active), idle], dim=axis)

    @property
    def mergeable(self) -> bool:
        """Whether both norms are batch norms, which are linear once their statistics are fixed."""
        norms = (getattr(self, "norm1", None), self.norm2)
        return all(isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) for norm in norms)


class MergedFeedForward(nn.Module):
    """The merged form fc3(GELU(fc2(x))) + fc1(x): the residual is in fc1; without active channels there is fc1 only."""

    def __init__(self, width: int, active: int, *, maps: bool = False) -> None:
        super().__init__()
        linear: Callable[..., nn.Module] = partial(nn.Conv2d, kernel_size=1) if maps else nn.Linear
        self.fc1 = linear(width, width)
        self.fc2 = linear(width, active) if active else None
        self.fc3 = linear(active, width, bias=False) if active else None

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return a tensor of the shape of x; nothing is dropped in this form, so that `keep` must be None."""
        assert keep is None, "the merged form does not train"
        y: Tensor = self.fc1(x)
        if self.fc2 is None or self.fc3 is None:
            return y
        return y + self.fc3(F.gelu(self.fc2(x)))  # type: ignore[no-any-return]


def _over_channels(norm: nn.Module, x: Tensor) -> Tensor:
    """Return norm(x); a batch norm of tokens (B, N, C) sees them as (B N, C), which gives the same statistics."""
    if isinstance(norm, nn.BatchNorm1d):
        return norm(x.flatten(0, -2)).view_as(x)  # type: ignore[no-any-return]
    return norm(x)  # type: ignore[no-any-return]


@torch.no_grad()
def merge(ffn: FeedForward) -> dict[str, Tensor]:
    """Return the tensors of the merged form by name, from the running statistics; UserError without batch norms.

    Computed in float64. The published PoolFormer scales the merged fc2 weight by the layer scale and forgets the bias;
    here both are scaled, so that the merged form is the same function.
    """
    if not ffn.mergeable:
        raise UserError("a feed-forward with LayerNorm cannot be merged: only batch norms are linear maps")
    w1, b1 = _folded(ffn.fc1, ffn.norm1)
    w2, b2 = _folded(ffn.fc2, ffn.norm2)
    if ffn.ls is not None:
        scale = ffn.ls.double()
        w2, b2 = w2 * scale[:, None], b2 * scale
    a = ffn.active
    tensors = {
        "fc1.weight": w2[:, a:] @ w1[a:] + torch.eye(len(w2), dtype=w2.dtype, device=w2.device),
        "fc1.bias": w2[:, a:] @ b1[a:] + b2,
    }
    if a:
        tensors |= {"fc2.weight": w1[:a], "fc2.bias": b1[:a], "fc3.weight": w2[:, :a]}
    like: Any = ffn.fc1.weight
    shaped = {name: t[:, :, None, None] if ffn.maps and t.ndim == 2 else t for name, t in tensors.items()}
    return {name: tensor.to(like.dtype).contiguous() for name, tensor in shaped.items()}


def _folded(linear: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Return weight (out, in) and bias (out,), float64, of linear(norm(x)) with the norm's running statistics."""
    weight = linear.weight.double().flatten(1)
    bias = torch.zeros(len(weight), dtype=weight.dtype, device=weight.device)
    if linear.bias is not None:
        bias = linear.bias.double()
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    return weight * scale, bias + weight @ (norm.bias.double() - norm.running_mean.double() * scale)
