"""RePaPoolFormer (arXiv 2505.21847): a PoolFormer with RePaViT's feed-forwards on maps, published parameter names."""

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
from repa_eval.models.shared.encoder import Encoder, idle_fields
from repa_eval.models.shared.idle_feed_forward import FeedForward, IdleConfig, MergedFeedForward, actives
from repa_eval.models.shared.state_dict_shapes import count


@dataclass(frozen=True, kw_only=True)
class RePaPoolFormerConfig(IdleConfig):
    """Arguments of RePaPoolFormer; its sizes are lists, one entry a stage."""

    input_size: int = option(224, help="side of the image; any is read", least=1)
    in_channels: int = option(3, help="channels of the image", least=1)
    num_classes: int = option(1000, help="classes; 0: no head", least=0)
    hidden_size: tuple[int, ...] = option((64, 128, 320, 512), help="width of each stage")
    depth: tuple[int, ...] = option((2, 2, 6, 2), help="blocks of each stage")
    mlp_ratios: tuple[float, ...] = option((4.0, 4.0, 4.0, 4.0), help="as mlp_ratio, of each stage")
    downsamples: tuple[bool, ...] = option((True, True, True, True), help="whether the map is halved after a stage")
    pool_size: int = option(3, help="side of the pooling window", least=1)
    use_layer_scale: bool = option(True, help="learned scales of both branches")
    patch_size: int = option(7, help="side of the first convolution", least=1)
    patch_stride: int = option(4, help="its stride", least=1)
    patch_padding: int = option(2, help="its padding", least=0)
    down_patch_size: int = option(3, help="side of the convolutions between stages", least=1)
    down_stride: int = option(2, help="their stride", least=1)
    down_padding: int = option(1, help="their padding", least=0)


class Downsample(nn.Module):
    """A strided convolution of maps."""

    def __init__(self, channels: int, width: int, side: int, stride: int, padding: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, side, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps (B, width, H/stride, W/stride) from maps x."""
        return self.proj(x)  # type: ignore[no-any-return]


class Block(nn.Module):
    """What pooling over neighbours changes, then the feed-forward, both scaled."""

    def __init__(self, config: RePaPoolFormerConfig, stage: int, active: int) -> None:
        super().__init__()
        width, scaled = config.hidden_size[stage], config.use_layer_scale
        self.norm1 = nn.GroupNorm(1, width)
        self.pool = nn.AvgPool2d(config.pool_size, 1, config.pool_size // 2, count_include_pad=False)
        self.layer_scale_1 = nn.Parameter(torch.full((width,), 1e-5)) if scaled else None
        self.mlp: nn.Module
        if config.merged:
            self.mlp = MergedFeedForward(width, active, maps=True)
        else:
            hidden = int(width * config.mlp_ratios[stage])
            self.mlp = FeedForward(width, hidden, active, norm=config.feature_norm, maps=True, layer_scale=scaled)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps (B, C, H, W) from maps x."""
        normed = self.norm1(x)
        change = self.pool(normed) - normed
        if self.layer_scale_1 is not None:
            change = change * self.layer_scale_1[:, None, None]
        return self.mlp(x + change)  # type: ignore[no-any-return]


def read(shapes: Shapes) -> dict[str, Any] | None:
    """Return the fields that a state dict's shapes tell, None if it is no RePaPoolFormer."""
    patch, parts = shapes.get("patch_embed.proj.weight"), count(shapes, "network")
    if patch is None or len(patch) != 4 or not parts or "network.0.0.mlp.fc1.weight" not in shapes:
        return None
    stages = [part for part in range(parts) if f"network.{part}.0.norm1.weight" in shapes]
    depth = tuple(count(shapes, f"network.{part}") for part in stages)
    names = [f"network.{part}.{j}.mlp" for part, blocks in zip(stages, depth, strict=True) for j in range(blocks)]
    widths = tuple(shapes[f"network.{part}.0.norm1.weight"][0] for part in stages)
    first = [f"network.{part}.0.mlp.fc1.weight" for part in stages]
    told = idle_fields(shapes, names)
    ratios = (shapes[name][0] / width for name, width in zip(first, widths, strict=True))
    return {
        "patch_size": patch[2],
        "in_channels": patch[1],
        "hidden_size": widths,
        "depth": depth,
        "downsamples": (*(f"network.{part + 1}.proj.weight" in shapes for part in stages[:-1]), True),
        "down_patch_size": next((s[2] for n, s in shapes.items() if n.startswith("network.1.proj.w")), 3),
        "num_classes": shapes.get("head.weight", (0,))[0],
        "use_layer_scale": "network.0.0.layer_scale_1" in shapes,
        "mlp_ratios": (4.0,) * len(stages) if told.get("merged") else tuple(ratios),
        **told,
    }


WIDE, WIDER = (64, 128, 320, 512), (96, 192, 384, 768)


@model(
    "RePaPoolFormer",
    defaults=RePaPoolFormerConfig(),
    presets={
        "RePaPoolformer_s12": {"depth": (2, 2, 6, 2), "hidden_size": WIDE, "idle_ratio": 0.75},
        "RePaPoolformer_s24": {"depth": (4, 4, 12, 4), "hidden_size": WIDE, "idle_ratio": 0.75},
        "RePaPoolformer_s36": {"depth": (6, 6, 18, 6), "hidden_size": WIDE, "idle_ratio": 0.75},
        "RePaPoolformer_m36": {"depth": (6, 6, 18, 6), "hidden_size": WIDER, "idle_ratio": 0.75},
        "RePaPoolformer_m48": {"depth": (8, 8, 24, 8), "hidden_size": WIDER, "idle_ratio": 0.75},
    },
    read=read,
    recorded=("idle_ratio", "channel_idle"),
)
class RePaPoolFormer(Encoder):
    """A convolutional stem, stages of pooling blocks with convolutions between them, norm, head on the mean."""

    def __init__(self, config: RePaPoolFormerConfig) -> None:
        super().__init__()
        self.config = config
        stages = len(config.depth)
        for name in ("hidden_size", "mlp_ratios", "downsamples"):
            if len(getattr(config, name)) != stages:
                raise UserError(f"{name} has {len(getattr(config, name))} entries; depth has {stages} stages: one each")
        self.patch_embed = Downsample(
            config.in_channels, config.hidden_size[0], config.patch_size, config.patch_stride, config.patch_padding
        )
        sizes = zip(config.depth, config.hidden_size, config.mlp_ratios, strict=True)
        hidden = [int(width * ratio) for blocks, width, ratio in sizes for _ in range(blocks)]
        # counted down, where the published ViT and Swin count up
        active = iter(actives(config, hidden, [config.idle_ratio] * len(hidden), rounding=math.floor))
        parts: list[nn.Module] = []
        for stage, blocks in enumerate(config.depth):
            parts.append(nn.Sequential(*(Block(config, stage, next(active)) for _ in range(blocks))))
            if stage < stages - 1 and self._shrinks(stage):
                parts.append(self._downsample(stage))
        self.network = nn.ModuleList(parts)
        self.norm = nn.GroupNorm(1, config.hidden_size[-1])
        self.head = nn.Linear(config.hidden_size[-1], config.num_classes) if config.num_classes else nn.Identity()

    def _shrinks(self, stage: int) -> bool:
        widths = self.config.hidden_size
        return bool(self.config.downsamples[stage] or widths[stage] != widths[stage + 1])

    def _downsample(self, stage: int) -> Downsample:
        config, (width, after) = self.config, self.config.hidden_size[stage : stage + 2]
        return Downsample(width, after, config.down_patch_size, config.down_stride, config.down_padding)

    def forward(self, x: Tensor, *, taps: Collection[int] = ()) -> tuple[Tensor, dict[int, Tensor]]:
        """Return (tokens (B, T, D) of the last map row by row, {layer: tokens of that block}) for images x."""
        check_taps(taps, sum(self.config.depth))
        x = self.patch_embed(x)
        hidden = {0: _tokens(x)} if 0 in taps else {}
        layer = 0
        for part in self.network:
            if isinstance(part, Downsample):
                x = part(x)
                continue
            for block in part:  # type: ignore[attr-defined]
                x, layer = block(x), layer + 1
                if layer in taps:
                    hidden[layer] = _tokens(x)
        return _tokens(self.norm(x)), hidden


def _tokens(maps: Tensor) -> Tensor:
    return maps.flatten(2).transpose(1, 2)
