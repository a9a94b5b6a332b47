"""A small ViT with a convolutional stem: the network of the embedded teacher `digits-vit`.

Eight by eight pixels give sixteen tokens. In this budget a linear patch embedding learns nothing; the stem does.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repa_eval.config import option
from repa_eval.interfaces.architecture import model
from repa_eval.models.shared.layers import Attention, Mlp, sincos_table


@dataclass(frozen=True, kw_only=True)
class ConvViTConfig:
    """Arguments of ConvViT."""

    input_size: int = option(8, help="side of the image")
    in_channels: int = option(1, help="channels of the image")
    stem_size: int = option(32, help="channels of the first convolution", least=1)
    hidden_size: int = option(96, help="width of the tokens", least=1)
    depth: int = option(2, help="number of blocks", least=1)
    num_heads: int = option(4, help="attention heads", least=1)
    mlp_ratio: float = option(4.0, help="width of the MLP over width of the tokens")


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: ConvViTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, config.num_heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, int(width * config.mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (B, N, D) from tokens (B, N, D)."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def conv_stem(channels: int, stem_size: int, width: int) -> nn.Sequential:
    """Return the stem: images (B, channels, H, W) to maps (B, width, H/2, W/2)."""
    return nn.Sequential(
        nn.Conv2d(channels, stem_size, 3, padding=1, bias=False),
        nn.BatchNorm2d(stem_size),
        nn.ReLU(),
        nn.Conv2d(stem_size, width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    )


def embedded(grid: Tensor, cls_token: Tensor) -> Tensor:
    """Return tokens (B, 1 + T, D) with sin-cos positions, the class token first, of the stem's maps (B, D, S, S)."""
    # made here and not kept: what the file does not hold must not be needed from it
    positions = sincos_table(grid.shape[1], grid.shape[-1]).to(grid)
    patches = grid.flatten(2).transpose(1, 2) + positions  # (B, T, D)
    return torch.cat([cls_token.expand(len(patches), -1, -1), patches], dim=1)


@model("ConvViT", defaults=ConvViTConfig(), presets={"ConvViT-digits": {}}, abilities={"patch tokens"})
class ConvViT(nn.Module):
    """Convolutional stem (stride 2), class token, sin-cos positions, blocks, final norm; z-scored features on request.

    feature_mean, feature_std (D,): statistics of the patch tokens over the training images (`calibrate`).
    """

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, config: ConvViTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.stem = conv_stem(config.in_channels, config.stem_size, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.register_buffer("feature_mean", torch.zeros(width))
        self.register_buffer("feature_std", torch.ones(width))
        nn.init.normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02 * (384 / width) ** 0.5)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, *, taps: Collection[int] = ()) -> tuple[Tensor, dict[int, Tensor]]:
        """Return (tokens (B, 1 + T, D), class token first, {layer: hidden}) for images x (B, C, H, W) in [-1, 1]."""
        x = embedded(self.stem(x), self.cls_token)
        hidden = {0: x} if 0 in taps else {}
        for layer, block in enumerate(self.blocks, 1):
            x = block(x)
            if layer in taps:
                hidden[layer] = x
        tokens: Tensor = self.norm(x)
        return tokens, hidden

    @torch.no_grad()
    def calibrate(self, images: Tensor, *, batch_size: int = 500) -> None:
        """Set the batch-norm statistics and the per-channel feature statistics from images (N, C, H, W) in [-1, 1]."""
        norms = [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain average over the batches
        self.train()
        for batch in images.split(batch_size):
            self(batch)
        for norm in norms:
            norm.momentum = 0.1
        self.eval()
        patches = torch.cat([self(batch)[0][:, 1:] for batch in images.split(batch_size)]).flatten(0, 1).double()
        self.feature_mean.copy_(patches.mean(0))
        self.feature_std.copy_(patches.std(0).clamp_min(1e-6))
