"""RePaMLPMixer (arXiv 2505.21847): an MLP-Mixer whose channel MLPs are RePaViT's feed-forwards, published names."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from repa_eval.config import option
from repa_eval.diffusion.model import check_taps
from repa_eval.interfaces.architecture import Shapes, model
from repa_eval.models.shared.encoder import Encoder, feed_forward, idle_fields
from repa_eval.models.shared.idle_feed_forward import LAYER_NORM, FeedForward, IdleConfig
from repa_eval.models.shared.layers import PatchEmbed
from repa_eval.models.shared.state_dict_shapes import count


@dataclass(frozen=True, kw_only=True)
class RePaMLPMixerConfig(IdleConfig):
    """Arguments of RePaMLPMixer; as published, idle_ratio is not read: hidden_size channels are active."""

    input_size: int = option(224, help="side of the image", least=1)
    patch_size: int = option(16, help="side of a patch", least=1)
    in_channels: int = option(3, help="channels of the image", least=1)
    num_classes: int = option(1000, help="classes; 0: no head", least=0)
    hidden_size: int = option(512, help="width of the tokens", least=1)
    depth: int = option(8, help="number of blocks", least=1)
    token_ratio: float = option(0.5, help="hidden width of the token MLP over the width of the tokens")


class Block(nn.Module):
    """A vanilla feed-forward across the tokens, its LayerNorm over the tokens too, then one across the channels."""

    def __init__(self, config: RePaMLPMixerConfig, active: int) -> None:
        super().__init__()
        tokens, hidden = (config.input_size // config.patch_size) ** 2, int(config.hidden_size * config.token_ratio)
        self.mlp_tokens = FeedForward(tokens, hidden, hidden, norm=LAYER_NORM)
        self.mlp_channels = feed_forward(config, config.hidden_size, active)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (B, N, D) from tokens x."""
        return self.mlp_channels(self.mlp_tokens(x.transpose(1, 2)).transpose(1, 2))  # type: ignore[no-any-return]


def read(shapes: Shapes) -> dict[str, Any] | None:
    """Return the fields that a state dict's shapes tell, None if it is no RePaMLPMixer."""
    patch, depth = shapes.get("stem.proj.weight"), count(shapes, "blocks")
    tokens = shapes.get("blocks.0.mlp_tokens.norm.weight")
    if patch is None or tokens is None or "blocks.0.mlp_channels.fc1.weight" not in shapes:
        return None
    return {
        "patch_size": patch[2],
        "in_channels": patch[1],
        "hidden_size": patch[0],
        "depth": depth,
        "input_size": math.isqrt(tokens[0]) * patch[2],
        "num_classes": shapes.get("head.weight", (0,))[0],
        "token_ratio": shapes["blocks.0.mlp_tokens.fc1.weight"][0] / patch[0],
        **idle_fields(shapes, [f"blocks.{i}.mlp_channels" for i in range(depth)]),
    }


@model(
    "RePaMLPMixer",
    defaults=RePaMLPMixerConfig(),
    presets={
        "RePaMlpMixer_s32_224": {"patch_size": 32, "hidden_size": 512, "depth": 8},
        "RePaMlpMixer_s16_224": {"patch_size": 16, "hidden_size": 512, "depth": 8},
        "RePaMlpMixer_b32_224": {"patch_size": 32, "hidden_size": 768, "depth": 12},
        "RePaMlpMixer_b16_224": {"patch_size": 16, "hidden_size": 768, "depth": 12},
        "RePaMlpMixer_l32_224": {"patch_size": 32, "hidden_size": 1024, "depth": 24},
        "RePaMlpMixer_l16_224": {"patch_size": 16, "hidden_size": 1024, "depth": 24},
    },
    read=read,
    recorded=("channel_idle",),
)
class RePaMLPMixer(Encoder):
    """Patches, blocks, norm, head on the mean token."""

    def __init__(self, config: RePaMLPMixerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.stem = PatchEmbed(config.input_size, config.patch_size, config.in_channels, width)
        active = width if config.channel_idle else int(width * config.mlp_ratio)
        self.blocks = nn.ModuleList(Block(config, active) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, config.num_classes) if config.num_classes else nn.Identity()

    def feed_forwards(self) -> dict[str, FeedForward]:
        """Return the channel MLPs; the token MLPs stay as they are in both forms."""
        return {name: part for name, part in super().feed_forwards().items() if name.endswith("mlp_channels")}

    def forward(self, x: Tensor, *, taps: Collection[int] = ()) -> tuple[Tensor, dict[int, Tensor]]:
        """Return (tokens (B, T, D), {layer: hidden}) for preprocessed images x (B, C, H, W)."""
        check_taps(taps, self.config.depth)
        x = self.stem(x)
        hidden = {0: x} if 0 in taps else {}
        for layer, block in enumerate(self.blocks, 1):
            x = block(x)
            if layer in taps:
                hidden[layer] = x
        return self.norm(x), hidden
