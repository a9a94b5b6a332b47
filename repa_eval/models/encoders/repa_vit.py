"""RePaViT (arXiv 2505.21847): a ViT with RePaViT's feed-forwards, under the published parameter names.

The options beyond the published ones make room for any plain vision transformer of timm that is converted to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from repa_eval.config import option
from repa_eval.interfaces.architecture import Shapes, model
from repa_eval.models.shared.encoder import BlockEncoder, feed_forward, idle_fields
from repa_eval.models.shared.idle_feed_forward import LINEAR, STATIC, IdleConfig, actives, linear_ratios
from repa_eval.models.shared.layers import Attention, PatchEmbed
from repa_eval.models.shared.state_dict_shapes import count


@dataclass(frozen=True, kw_only=True)
class RePaViTConfig(IdleConfig):
    """Arguments of RePaViT."""

    input_size: int = option(224, help="side of the image", least=1)
    patch_size: int = option(16, help="side of a patch", least=1)
    in_channels: int = option(3, help="channels of the image", least=1)
    num_classes: int = option(1000, help="classes; 0: no head", least=0)
    hidden_size: int = option(768, help="width of the tokens", least=1)
    depth: int = option(12, help="number of blocks", least=1)
    num_heads: int = option(12, help="attention heads", least=1)
    qkv_bias: bool = option(True, help="biases in the attention")
    qk_norm: bool = option(False, help="norm of queries and keys")
    pre_norm: bool = option(True, help="a norm before the blocks, and no bias in the patch embedding")
    fc_norm: bool = option(False, help="norm after pooling instead of before")
    final_norm: bool = option(True, help="a norm after the blocks")
    global_pool: str = option("token", help="what the head reads", choices=("token", "avg"))
    heuristic: str = option(STATIC, help="how the idle ratio varies over the blocks", choices=(STATIC, LINEAR))
    norm_eps: float = option(1e-5, help="of the norm before the attention")
    final_eps: float = option(1e-6, help="of the norms before and after the blocks, which timm makes")
    class_token: bool = option(True, help="a class token")
    num_registers: int = option(0, help="register tokens after it", least=0)
    embed_prefix: bool = option(True, help="class token and registers have a position too")


class NormedAttention(Attention):
    """Attention with its norm inside, as published."""

    def __init__(self, config: RePaViTConfig) -> None:
        norm: Callable[[int], nn.Module] = partial(nn.LayerNorm, eps=config.norm_eps)
        super().__init__(
            config.hidden_size, config.num_heads, qk_norm=config.qk_norm, norm=norm, qkv_bias=config.qkv_bias
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)

    def forward(self, x: Tensor, rotate: Any = None, *, logits: list[Tensor] | None = None) -> Tensor:
        """Return (B, N, D) from tokens x (B, N, D) before the norm."""
        return super().forward(self.norm(x), rotate, logits=logits)


class Block(nn.Module):
    """Pre-norm block; the residual of the feed-forward lies inside it."""

    def __init__(self, config: RePaViTConfig, active: int) -> None:
        super().__init__()
        self.attn = NormedAttention(config)
        self.mlp = feed_forward(config, config.hidden_size, active)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return tokens (B, N, D) from tokens x; keep (B, 2): what attention and feed-forward are multiplied by."""
        attended = self.attn(x)
        if keep is None:
            return self.mlp(x + attended)  # type: ignore[no-any-return]
        return self.mlp(x + attended * keep[:, :1, None], keep[:, 1])  # type: ignore[no-any-return]


def read(shapes: Shapes) -> dict[str, Any] | None:
    """Return the fields that a state dict's shapes tell, None if it is no RePaViT."""
    patch, positions = shapes.get("patch_embed.proj.weight"), shapes.get("pos_embed")
    depth = count(shapes, "blocks")
    if patch is None or positions is None or "blocks.0.attn.norm.weight" not in shapes:
        return None
    if "blocks.0.mlp.fc1.weight" not in shapes:
        return None
    prefix = shapes.get("reg_token", (1, 0, 0))[1] + ("cls_token" in shapes)
    side = math.isqrt(positions[1])
    pre_norm = "norm_pre.weight" in shapes
    rows = "head.weight" in shapes and shapes["head.weight"][0]
    return {
        "patch_size": patch[2],
        "in_channels": patch[1],
        "hidden_size": patch[0],
        "depth": depth,
        # a square number of positions has none for the prefix, since one more or less is no square
        "input_size": math.isqrt(positions[1] - prefix) * patch[2] if side * side != positions[1] else side * patch[2],
        "embed_prefix": side * side != positions[1],
        "class_token": "cls_token" in shapes,
        "num_registers": shapes.get("reg_token", (1, 0, 0))[1],
        "num_classes": rows or 0,
        "qkv_bias": "blocks.0.attn.qkv.bias" in shapes,
        "qk_norm": "blocks.0.attn.q_norm.weight" in shapes,
        "pre_norm": pre_norm,
        "fc_norm": "fc_norm.weight" in shapes,
        "final_norm": "norm.weight" in shapes or "fc_norm.weight" in shapes,
        **idle_fields(shapes, [f"blocks.{i}.mlp" for i in range(depth)]),
    }


@model(
    "RePaViT",
    defaults=RePaViTConfig(),
    presets={
        "RePaViT_Tiny": {"hidden_size": 192, "depth": 12, "num_heads": 3, "idle_ratio": 0.5},
        "RePaViT_Small": {"hidden_size": 384, "depth": 12, "num_heads": 6, "idle_ratio": 0.5},
        "RePaViT_Base": {"hidden_size": 768, "depth": 12, "num_heads": 12, "idle_ratio": 0.75},
        "RePaViT_Large": {"hidden_size": 1024, "depth": 24, "num_heads": 16, "idle_ratio": 0.75},
        "RePaViT_Huge": {"hidden_size": 1280, "depth": 32, "num_heads": 16, "idle_ratio": 0.75},
        "RePaViT": {},  # what a teacher is converted to: its sizes are the teacher's
    },
    read=read,
    recorded=("idle_ratio", "channel_idle", "heuristic"),
    abilities={"idle channels"},
)
class RePaViT(BlockEncoder):
    """Patches, class token, learned positions, blocks, norm, head on the class token."""

    def __init__(self, config: RePaViTConfig) -> None:
        super().__init__()
        self.config = config
        width, prefix = config.hidden_size, config.class_token + config.num_registers
        self.prefix_tokens = prefix
        self.has_class_token = config.class_token
        self.patch_embed = PatchEmbed(
            config.input_size, config.patch_size, config.in_channels, width, bias=not config.pre_norm
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if config.class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, config.num_registers, width)) if config.num_registers else None
        patches = (config.input_size // config.patch_size) ** 2
        self.pos_embed = nn.Parameter(torch.zeros(1, patches + prefix * config.embed_prefix, width))
        outer = partial(nn.LayerNorm, width, eps=config.final_eps)
        self.norm_pre = outer() if config.pre_norm else nn.Identity()
        ratios = [config.idle_ratio] * config.depth
        if config.heuristic == LINEAR:
            ratios = linear_ratios(config.idle_ratio, config.depth)
        active = actives(config, [int(width * config.mlp_ratio)] * config.depth, ratios)
        self.blocks = nn.ModuleList(Block(config, count) for count in active)
        normed = config.final_norm and not config.fc_norm
        self.norm = outer() if normed else nn.Identity()
        self.fc_norm = outer() if config.final_norm and config.fc_norm else nn.Identity()
        self.head = nn.Linear(width, config.num_classes) if config.num_classes else nn.Identity()
        self._initialise()

    def _initialise(self) -> None:
        for token in (self.cls_token, self.reg_token, self.pos_embed):
            if token is not None:
                nn.init.normal_(token, std=0.02)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def embed(self, x: Tensor) -> Tensor:
        """Return the tokens (B, prefix + T, D) that enter the first block, of images x (B, C, H, W)."""
        patches = self.patch_embed(x)
        prefix = [token.expand(len(x), -1, -1) for token in (self.cls_token, self.reg_token) if token is not None]
        if self.config.embed_prefix:
            return self.norm_pre(torch.cat([*prefix, patches], dim=1) + self.pos_embed)  # type: ignore[no-any-return]
        return self.norm_pre(torch.cat([*prefix, patches + self.pos_embed], dim=1))  # type: ignore[no-any-return]

    def pooled(self, tokens: Tensor) -> Tensor:
        """Return the class token, or the mean patch token, as the head reads it (B, D)."""
        taken = tokens[:, 0] if self.config.global_pool == "token" else tokens[:, self.prefix_tokens :].mean(1)
        return self.fc_norm(taken)  # type: ignore[no-any-return]
