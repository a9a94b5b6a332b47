"""The parts of U-DiT (arXiv 2405.02730): attention within four interleaved sub-grids and a feed-forward of branches."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repa_eval.errors import UserError
from repa_eval.models.shared.axial_rotary import axial_rotation, check_head_width
from repa_eval.models.shared.blocks import GELU
from repa_eval.models.shared.layers import Mlp

HIGHEST_LOGIT_SCALE = math.log(100)


def conv(width: int, out: int, side: int, *, groups: int = 1, bias: bool = True) -> nn.Conv2d:
    """Return a convolution that keeps the size of the map."""
    return nn.Conv2d(width, out, side, padding=side // 2, groups=groups, bias=bias)


class Downsampler(nn.Module):
    """Depthwise convolution, with or without its input added; the "down" is the cut into sub-grids that follows."""

    def __init__(self, width: int, side: int, *, shortcut: bool) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.layer = conv(width, width, side, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map (B, C, H, W) of the same size."""
        mixed: Tensor = self.layer(x)
        return x + mixed if self.shortcut else mixed


class SubGridAttention(nn.Module):
    """Every pixel attends to those of its own sub-grid: rows and columns of one offset modulo down_factor.

    cosine: unit queries and keys and one learned scale a head, instead of head_width^-0.5.
    """

    def __init__(
        self, width: int, num_heads: int, *, down_factor: int, side: int, shortcut: bool, cosine: bool, rope: bool
    ) -> None:
        super().__init__()
        if width % num_heads:
            raise UserError(f"hidden_size {width} is not a multiple of num_heads {num_heads}")
        if rope:
            check_head_width(width // num_heads)
        self.num_heads, self.down_factor, self.rope = num_heads, down_factor, rope
        if cosine:
            self.logit_scale = nn.Parameter(torch.full((num_heads, 1, 1), math.log(10.0)))
        else:
            self.register_parameter("logit_scale", None)
        self.downsampler = Downsampler(width, side, shortcut=shortcut)
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = conv(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map (B, C, H, W) of the same size."""
        batch, width, height, columns = x.shape
        f, h, w = self.down_factor, height // self.down_factor, columns // self.down_factor
        grids = self.downsampler(x).reshape(batch, width, h, f, w, f).permute(0, 3, 5, 2, 4, 1)  # (B, f, f, h, w, C)
        qkv = self.to_qkv(grids).reshape(batch * f * f, h * w, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B f f, heads, h w, head width)
        if self.rope:
            rotate = axial_rotation(q.shape[-1], h, w, x.device)
            q, k = rotate(q), rotate(k)
        mixed = self._mix(q, k, v).transpose(1, 2).reshape(batch, f, f, h, w, width)
        return self.to_out(mixed.permute(0, 5, 3, 1, 4, 2).reshape(x.shape))  # type: ignore[no-any-return]

    def _mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.logit_scale is None:
            return F.scaled_dot_product_attention(q, k, v)
        scale = self.logit_scale.clamp(max=HIGHEST_LOGIT_SCALE).exp()  # (heads, 1, 1)
        q, k = F.normalize(q, dim=-1) * scale, F.normalize(k, dim=-1)
        return F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, scale=1.0)


class BranchedMlp(nn.Module):
    """Feed-forward whose linear parts are kept apart for training: pairs of 1x1 convolutions, depthwise branches.

    The published code merges the branches IN PLACE in eval(), so that a second eval(), or a state dict taken after
    one, is wrong. Here eval() changes nothing, and `merged` makes new tensors.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        narrow = hidden // 2
        self.project_in = nn.Sequential(conv(width, narrow, 1), conv(narrow, hidden, 1))
        self.act = nn.GELU()  # the exact one, unlike the other feed-forward's
        self.dwconv = nn.ModuleList(conv(hidden, hidden, side, groups=hidden) for side in (5, 3, 1))
        self.project_out = nn.Sequential(conv(hidden, narrow, 1), conv(narrow, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return a map (B, C, H, W) of the same size."""
        x = self.act(self.project_in(x))
        x = x + sum(branch(x) for branch in self.dwconv)
        return self.project_out(x)  # type: ignore[no-any-return]

    def merged(self) -> nn.Sequential:
        """Return the same function as three convolutions with tensors of their own."""
        return nn.Sequential(_one(self.project_in), self.act, self._depthwise(), _one(self.project_out))

    @torch.no_grad()
    def _depthwise(self) -> nn.Conv2d:
        branches: Any = self.dwconv
        largest = branches[0]
        side = largest.kernel_size[0]
        weight, bias = torch.zeros_like(largest.weight), torch.zeros_like(largest.bias)
        for branch in branches:
            weight += F.pad(branch.weight, [(side - branch.kernel_size[0]) // 2] * 4)
            bias += branch.bias
        weight[:, :, side // 2, side // 2] += 1  # the identity
        return _conv_of(weight, bias, groups=len(weight))


@torch.no_grad()
def _one(pair: Any) -> nn.Conv2d:
    """Return the 1x1 convolution that two in a row are."""
    first, second = pair
    outer = second.weight.flatten(1)
    weight = outer @ first.weight.flatten(1)
    return _conv_of(weight[:, :, None, None], outer @ first.bias + second.bias, groups=1)


def _conv_of(weight: Tensor, bias: Tensor, *, groups: int) -> nn.Conv2d:
    out, width, side, _ = weight.shape
    with torch.device("meta"):  # no memory, and no draw from the global generator
        made = conv(width * groups, out, side, groups=groups)
    made.weight, made.bias = (nn.Parameter(value, requires_grad=False) for value in (weight, bias))
    return made


class UDiTBlock(nn.Module):
    """Two pairs of attention and feed-forward, each with six chunks of the condition: shift, scale, gate, twice."""

    def __init__(self, width: int, num_heads: int, *, mlp_ratio: float, branched: bool, **attention: Any) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        for i in (1, 2):
            mlp = BranchedMlp(width, hidden) if branched else Mlp(width, hidden, act=GELU, linear=partial(conv, side=1))
            self.add_module(f"attn{i}", SubGridAttention(width, num_heads, **attention))
            self.add_module(f"mlp{i}", mlp)
            self.add_module(f"adaLN_modulation{i}", nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width)))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Return a map (B, C, H, W) from a map x and a condition c (B, C)."""
        for i in (1, 2):
            chunks: Tensor = self.get_submodule(f"adaLN_modulation{i}")(c)
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = chunks[:, :, None, None].chunk(6, dim=1)
            x = x + gate_a * self.get_submodule(f"attn{i}")(modulated_norm(x, shift_a, scale_a))
            x = x + gate_m * self.get_submodule(f"mlp{i}")(modulated_norm(x, shift_m, scale_m))
        return x

    def merge(self) -> None:
        """Replace feed-forwards of branches by merged ones; what is merged already stays."""
        for name, part in list(self.named_children()):
            if isinstance(part, BranchedMlp):
                self.add_module(name, part.merged())


class MapFinalLayer(nn.Module):
    """Modulated norm and the convolution from features to the output's channels."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.out_proj = conv(width, channels, 3)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Return a map (B, channels, H, W) from a map x (B, C, H, W) and a condition c (B, C)."""
        shift, scale = self.adaLN_modulation(c)[:, :, None, None].chunk(2, dim=1)
        return self.out_proj(modulated_norm(x, shift, scale))  # type: ignore[no-any-return]


class Resize(nn.Module):
    """Halves or doubles the sides of a map: a 3x3 convolution to `out` channels, no bias, then a pixel shuffle."""

    def __init__(self, width: int, out: int, *, down: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(width, out, 3, bias=False), nn.PixelUnshuffle(2) if down else nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        """Return a map (B, 4*out or out/4, ..) from a map (B, width, H, W)."""
        return self.body(x)  # type: ignore[no-any-return]


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return x (B, C, H, W) normalised over its channels, eps 1e-6, then scaled and shifted by (B, C, 1, 1)."""
    normed = F.layer_norm(x.movedim(1, -1), x.shape[1:2], eps=1e-6).movedim(-1, 1)
    return normed * (1 + scale) + shift


def tokens_of(maps: Tensor) -> Tensor:
    """Return tokens (B, H*W, C), row by row, of maps (B, C, H, W)."""
    return maps.flatten(2).transpose(1, 2)
