"""A diffusion transformer of one's own, with register tokens: trains with `repa`, though it has no projectors."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repa_eval.plugins import DiffusionModel, check_taps, model, option

REGISTERS = 3


@dataclass(frozen=True, kw_only=True)
class RegisterDiTConfig:
    """Arguments; input_size, in_channels and num_classes follow from the data."""

    input_size: int = option(8, help="side of the image")
    in_channels: int = option(1, help="channels of the image")
    num_classes: int = option(10, help="class labels; the null label is num_classes")
    patch_size: int = option(2, help="side of a patch")
    hidden_size: int = option(32, help="width of the tokens")
    depth: int = option(2, help="number of blocks")
    num_heads: int = option(2, help="attention heads")


@model("RegisterDiT", defaults=RegisterDiTConfig(), presets={"RegisterDiT-tiny": {}})
class RegisterDiT(DiffusionModel):
    """Plain transformer blocks on registers, then patches; time and class are added to every token."""

    prefix_tokens = REGISTERS

    def __init__(self, config: RegisterDiTConfig) -> None:
        super().__init__()
        self.config = config
        width, patch = config.hidden_size, config.patch_size
        side = config.input_size // patch
        self.patches = nn.Conv2d(config.in_channels, width, patch, stride=patch)
        self.positions = nn.Parameter(0.02 * torch.randn(1, side * side, width))
        self.registers = nn.Parameter(0.02 * torch.randn(1, REGISTERS, width))
        self.time = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(config.num_classes + 1, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, config.num_heads, 4 * width, 0.0, batch_first=True, norm_first=True)
            for _ in range(config.depth)
        )
        self.out = nn.ConvTranspose2d(width, config.in_channels, patch, stride=patch)

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor, *, taps: Collection[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Return (velocity (B, C, H, W), {layer: hidden (B, REGISTERS + N, D)})."""
        check_taps(taps, self.depth)
        maps = self.patches(x)  # (B, D, h, w)
        tokens = maps.flatten(2).transpose(1, 2) + self.positions
        tokens = torch.cat([self.registers.expand(len(x), -1, -1), tokens], dim=1)
        tokens = tokens + (self.time(t[:, None]) + self.label(y))[:, None]
        hidden = {0: tokens} if 0 in taps else {}
        for layer, block in enumerate(self.blocks, 1):
            tokens = block(tokens)
            if layer in taps:
                hidden[layer] = tokens
        patches = tokens[:, REGISTERS:].transpose(1, 2).reshape(maps.shape)
        return self.out(patches), hidden
