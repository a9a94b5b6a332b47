"""RePaSwin (arXiv 2505.21847): a Swin transformer with RePaViT's feed-forwards, under the published parameter names."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repa_eval.config import option
from repa_eval.diffusion.model import check_taps
from repa_eval.errors import UserError
from repa_eval.interfaces.architecture import Shapes, model
from repa_eval.models.shared.encoder import Encoder, feed_forward, idle_fields
from repa_eval.models.shared.idle_feed_forward import IdleConfig, actives
from repa_eval.models.shared.layers import PatchEmbed
from repa_eval.models.shared.state_dict_shapes import count

APART = -100.0  # the logit of two tokens that are neighbours only because the map was rolled


@dataclass(frozen=True, kw_only=True)
class RePaSwinConfig(IdleConfig):
    """Arguments of RePaSwin."""

    input_size: int = option(224, help="side of the image", least=1)
    patch_size: int = option(4, help="side of a patch", least=1)
    in_channels: int = option(3, help="channels of the image", least=1)
    num_classes: int = option(1000, help="classes; 0: no head", least=0)
    hidden_size: int = option(96, help="width of the first stage; it doubles from stage to stage", least=1)
    depth: tuple[int, ...] = option((2, 2, 6, 2), help="blocks of each stage")
    num_heads: tuple[int, ...] = option((3, 6, 12, 24), help="attention heads of each stage")
    window_size: int = option(7, help="side of a window of tokens", least=1)
    qkv_bias: bool = option(True, help="biases of queries, keys and values")
    patch_norm: bool = option(True, help="a norm after the patch embedding")


class NormedPatches(PatchEmbed):
    """Patches and their norm."""

    def __init__(self, config: RePaSwinConfig) -> None:
        super().__init__(config.input_size, config.patch_size, config.in_channels, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size) if config.patch_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (B, N, D)."""
        return self.norm(super().forward(x))  # type: ignore[no-any-return]


class WindowAttention(nn.Module):
    """Self-attention inside windows, with a learned bias for every offset between two tokens."""

    relative_position_index: Tensor

    def __init__(self, width: int, window: int, num_heads: int, *, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        self.register_buffer("relative_position_index", _offsets(window))
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return (B W, N, C) from windows x (B W, N, C); mask (W, N, N) is added to the logits."""
        windows, tokens, width = x.shape
        q, k, v = self.qkv(x).view(windows, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        bias = bias.view(1, tokens, tokens, self.num_heads).permute(0, 3, 1, 2)  # (1, heads, N, N)
        if mask is not None:
            bias = (bias + mask[:, None]).repeat(windows // len(mask), 1, 1, 1)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(mixed.transpose(1, 2).reshape(windows, tokens, width))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention in windows, shifted by half a window in every second block, then the feed-forward."""

    attn_mask: Tensor | None

    def __init__(self, config: RePaSwinConfig, stage: int, index: int, active: int) -> None:
        super().__init__()
        width, self.side = config.hidden_size << stage, _side(config, stage)
        whole = self.side <= config.window_size  # one window: nothing to shift
        self.window = self.side if whole else config.window_size
        self.shift = 0 if whole or index % 2 == 0 else config.window_size // 2
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, self.window, config.num_heads[stage], qkv_bias=config.qkv_bias)
        self.mlp = feed_forward(config, width, active)
        self.register_buffer("attn_mask", _mask(self.side, self.window, self.shift) if self.shift else None)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (B, N, C) from tokens x, row by row."""
        batch, tokens, width = x.shape
        grid = self.norm1(x).view(batch, self.side, self.side, width)
        if self.shift:
            grid = grid.roll((-self.shift, -self.shift), dims=(1, 2))
        grid = self._joined(self.attn(windows_of(grid, self.window), self.attn_mask), batch)
        if self.shift:
            grid = grid.roll((self.shift, self.shift), dims=(1, 2))
        return self.mlp(x + grid.reshape(batch, tokens, width))  # type: ignore[no-any-return]

    def _joined(self, windows: Tensor, batch: int) -> Tensor:
        count = self.side // self.window
        grid = windows.view(batch, count, count, self.window, self.window, -1)
        return grid.permute(0, 1, 3, 2, 4, 5).reshape(batch, self.side, self.side, -1)


def windows_of(grid: Tensor, window: int) -> Tensor:
    """Return the windows (B W, window^2, C) of maps (B, side, side, C)."""
    batch, side, _, width = grid.shape
    count = side // window
    return grid.view(batch, count, window, count, window, width).permute(0, 1, 3, 2, 4, 5).reshape(-1, window**2, width)


class PatchMerging(nn.Module):
    """Four neighbouring tokens into one of twice the width."""

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (B, N/4, 2C) from tokens x (B, N, C)."""
        grid = x.view(len(x), self.side, self.side, -1)
        corners = [grid[:, row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
        return self.reduction(self.norm(torch.cat(corners, dim=-1).flatten(1, 2)))  # type: ignore[no-any-return]


class Stage(nn.Module):
    """Blocks of one width, and the way to the next."""

    def __init__(self, config: RePaSwinConfig, stage: int, active: list[int]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(config, stage, index, count) for index, count in enumerate(active))
        last = stage == len(config.depth) - 1
        self.downsample = None if last else PatchMerging(config.hidden_size << stage, _side(config, stage))


def _side(config: RePaSwinConfig, stage: int) -> int:
    return (config.input_size // config.patch_size) >> stage


def _offsets(window: int) -> Tensor:
    """Return for each two tokens of a window the row of the bias table: (row offset, column offset), int64."""
    rows, columns = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    down = rows[:, None] - rows[None] + window - 1
    right = columns[:, None] - columns[None] + window - 1
    return down * (2 * window - 1) + right


def _mask(side: int, window: int, shift: int) -> Tensor:
    """Return 0 for tokens of one region of the rolled map, APART for others: (windows, window^2, window^2)."""
    place = torch.arange(side)
    band = (place >= side - window).long() + (place >= side - shift).long()
    regions = (3 * band[:, None] + band[None]).view(1, side, side, 1)
    own = windows_of(regions, window)[..., 0]  # (W, N)
    return torch.where(own[:, None] == own[:, :, None], 0.0, APART)


def read(shapes: Shapes) -> dict[str, Any] | None:
    """Return the fields that a state dict's shapes tell, None if it is no RePaSwin."""
    patch, stages = shapes.get("patch_embed.proj.weight"), count(shapes, "layers")
    if patch is None or not stages or "layers.0.blocks.0.mlp.fc1.weight" not in shapes:
        return None
    depth = tuple(count(shapes, f"layers.{i}.blocks") for i in range(stages))
    names = [f"layers.{i}.blocks.{j}" for i, blocks in enumerate(depth) for j in range(blocks)]
    if not all(f"{name}.attn.relative_position_bias_table" in shapes for name in names):
        return None
    heads = tuple(shapes[f"layers.{i}.blocks.0.attn.relative_position_bias_table"][1] for i in range(stages))
    window, side = _geometry(shapes, depth)
    return {
        "patch_size": patch[2],
        "in_channels": patch[1],
        "hidden_size": patch[0],
        "depth": depth,
        "num_heads": heads,
        "window_size": window,
        "input_size": side * patch[2],
        "num_classes": shapes.get("head.weight", (0,))[0],
        "qkv_bias": "layers.0.blocks.0.attn.qkv.bias" in shapes,
        "patch_norm": "patch_embed.norm.weight" in shapes,
        **idle_fields(shapes, [f"{name}.mlp" for name in names]),
    }


def _geometry(shapes: Shapes, depth: tuple[int, ...]) -> tuple[int, int]:
    """Return (window, side of the first stage's map): a shifted block's mask holds one table per window."""
    first = math.isqrt(shapes["layers.0.blocks.0.attn.relative_position_index"][0])
    for stage, blocks in enumerate(depth):
        masks = [shapes.get(f"layers.{stage}.blocks.{j}.attn_mask") for j in range(blocks)]
        for mask in masks:
            if mask is not None:
                return math.isqrt(mask[1]), (math.isqrt(mask[0]) * math.isqrt(mask[1])) << stage
    return first, first  # nowhere shifted: the first map is one window


@model(
    "RePaSwin",
    defaults=RePaSwinConfig(),
    presets={
        "RePaSwin_Tiny": {"hidden_size": 96, "depth": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24), "idle_ratio": 0.75},
        "RePaSwin_Small": {"hidden_size": 96, "depth": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24), "idle_ratio": 0.75},
        "RePaSwin_Base": {"hidden_size": 128, "depth": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32), "idle_ratio": 0.75},
    },
    read=read,
    recorded=("idle_ratio", "channel_idle"),
)
class RePaSwin(Encoder):
    """Patches, stages of windowed blocks with patch merging between them, norm, head on the mean token."""

    def __init__(self, config: RePaSwinConfig) -> None:
        super().__init__()
        self.config = config
        if len(config.depth) != len(config.num_heads):
            raise UserError(f"depth has {len(config.depth)} stages, num_heads {len(config.num_heads)}: give one each")
        self.patch_embed = NormedPatches(config)
        widths = [config.hidden_size << stage for stage in range(len(config.depth))]
        hidden = [
            int(w * config.mlp_ratio) for w, blocks in zip(widths, config.depth, strict=True) for _ in range(blocks)
        ]
        active = iter(actives(config, hidden, [config.idle_ratio] * len(hidden)))
        self.layers = nn.ModuleList(
            Stage(config, stage, [next(active) for _ in range(blocks)]) for stage, blocks in enumerate(config.depth)
        )
        self.norm = nn.LayerNorm(widths[-1])
        self.head = nn.Linear(widths[-1], config.num_classes) if config.num_classes else nn.Identity()
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)

    def forward(self, x: Tensor, *, taps: Collection[int] = ()) -> tuple[Tensor, dict[int, Tensor]]:
        """Return (tokens (B, T, D) of the last stage, {layer: tokens of that block, counted over the stages})."""
        check_taps(taps, sum(self.config.depth))
        x = self.patch_embed(x)
        hidden = {0: x} if 0 in taps else {}
        layer = 0
        stages: Any = self.layers
        for stage in stages:
            for block in stage.blocks:
                x, layer = block(x), layer + 1
                if layer in taps:
                    hidden[layer] = x
            if stage.downsample is not None:
                x = stage.downsample(x)
        return self.norm(x), hidden
