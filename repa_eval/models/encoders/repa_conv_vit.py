"""The network of the embedded teacher `digits-vit` (conv_vit.py) with RePaViT's feed-forwards, distilled from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repa_eval.config import option
from repa_eval.interfaces.architecture import model
from repa_eval.models.encoders.conv_vit import conv_stem, embedded
from repa_eval.models.encoders.repa_vit import Block, RePaViTConfig
from repa_eval.models.shared.encoder import BlockEncoder
from repa_eval.models.shared.idle_feed_forward import LINEAR, STATIC, IdleConfig, PixelConfig, actives, linear_ratios


@dataclass(frozen=True, kw_only=True)
class RePaConvViTConfig(IdleConfig):
    """Arguments of RePaConvViT: those of ConvViT and of the feed-forwards."""

    input_size: int = option(8, help="side of the image")
    in_channels: int = option(1, help="channels of the image")
    stem_size: int = option(32, help="channels of the first convolution", least=1)
    hidden_size: int = option(96, help="width of the tokens", least=1)
    depth: int = option(2, help="number of blocks", least=1)
    num_heads: int = option(4, help="attention heads", least=1)
    heuristic: str = option(STATIC, help="how the idle ratio varies over the blocks", choices=(STATIC, LINEAR))
    pixels: PixelConfig = PixelConfig(rule="signed")


@model("RePaConvViT", defaults=RePaConvViTConfig(), presets={"RePaConvViT-digits": {}}, abilities={"idle channels"})
class RePaConvViT(BlockEncoder):
    """ConvViT's stem, class token, positions, final norm and feature statistics around RePaViT's blocks.

    The stem is not trained, and its batch norms keep the teacher's statistics: `train()` leaves them in eval mode.
    """

    feature_mean: Tensor
    feature_std: Tensor
    prefix_tokens = 1
    has_class_token = True

    def __init__(self, config: RePaConvViTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.stem = conv_stem(config.in_channels, config.stem_size, width).requires_grad_(False)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        ratios = [config.idle_ratio] * config.depth
        if config.heuristic == LINEAR:
            ratios = linear_ratios(config.idle_ratio, config.depth)
        active = actives(config, [int(width * config.mlp_ratio)] * config.depth, ratios)
        shared: Any = {"mlp_ratio": config.mlp_ratio, "feature_norm": config.feature_norm, "merged": config.merged}
        block = RePaViTConfig(hidden_size=width, num_heads=config.num_heads, norm_eps=1e-6, **shared)
        self.blocks = nn.ModuleList(Block(block, count) for count in active)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Identity()
        self.register_buffer("feature_mean", torch.zeros(width))
        self.register_buffer("feature_std", torch.ones(width))
        nn.init.normal_(self.cls_token, std=0.02)
        for part in self.blocks.modules():
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02 * (384 / width) ** 0.5)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def train(self, mode: bool = True) -> RePaConvViT:
        """Set the mode of all but the stem."""
        super().train(mode)
        self.stem.eval()
        return self

    def embed(self, x: Tensor) -> Tensor:
        """Return the tokens (B, 1 + T, D) that enter the first block, of images x (B, C, H, W) in [-1, 1]."""
        return embedded(self.stem(x), self.cls_token)

    def scaled(self, tokens: Tensor) -> Tensor:
        """Return tokens z-scored per channel by the statistics of the teacher that the weights come from."""
        return (tokens - self.feature_mean) / self.feature_std
