"""Text-to-image networks that can be trained and sampled here: SD3 and MMDiT on captions that a fixed encoder reads.

With `num_tokens` they are SoftREPA's: the network frozen, soft tokens before its text (arXiv 2503.08250).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repa_eval.config import option
from repa_eval.diffusion.model import DiffusionModel
from repa_eval.errors import UserError
from repa_eval.interfaces.architecture import model
from repa_eval.models.mmdit import MMDiT, MMDiTConfig
from repa_eval.models.shared.soft_tokens import SoftTokens, build_sd3
from repa_eval.models.shared.text_encoder import NUM_WORDS, WIDTH, encode


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """What the networks here have in common: image, blocks, captions, soft tokens."""

    input_size: int = option(64, help="longer side of the latent")
    input_shape: tuple[int, ...] = option((), help="height and width where the latent is not square")
    patch_size: int = option(2, help="side of a patch", least=1)
    in_channels: int = option(16, help="channels of the latent")
    depth: int = option(24, help="number of joint blocks", least=1)
    hidden_size: int = option(1536, help="width of the tokens", least=1)
    num_heads: int = option(24, help="attention heads", least=1)
    context_size: int = option(WIDTH, help="width of the text tokens", least=1)
    num_words: int = option(NUM_WORDS, help="text tokens of a caption", least=1)
    num_classes: int = option(0, help="number of captions", least=0)
    captions: tuple[str, ...] = option((), help="the captions that labels stand for")
    num_tokens: int = option(0, help="soft tokens per block; 0: the plain network, which trains", least=0)
    token_layers: int = option(-1, help="first blocks that have soft tokens; -1: all")
    token_width: int = option(0, help="width of a soft token, before or after the text's embedder; 0: after", least=0)
    time_offsets: bool = option(True, help="move the soft tokens by the time's bin")


@dataclass(frozen=True, kw_only=True)
class SD3Config(TextConfig):
    """Arguments of diffusers' SD3 transformer."""

    pooled_size: int = option(2048, help="width of the pooled text, which is 0 here", least=1)
    positions: int = option(192, help="side of the table of positions, in patches", least=1)

    def of_diffusers(self) -> dict[str, Any]:
        """Return them by diffusers' names; UserError where the width is no multiple of the heads."""
        if self.hidden_size % self.num_heads:
            raise UserError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        return {
            "sample_size": self.input_size,
            "patch_size": self.patch_size,
            "in_channels": self.in_channels,
            "out_channels": self.in_channels,
            "num_layers": self.depth,
            "attention_head_dim": self.hidden_size // self.num_heads,
            "num_attention_heads": self.num_heads,
            "joint_attention_dim": self.context_size,
            "caption_projection_dim": self.hidden_size,
            "pooled_projection_dim": self.pooled_size,
            "pos_embed_max_size": self.positions,
        }


@dataclass(frozen=True, kw_only=True)
class MMDiTTextConfig(TextConfig):
    """Arguments of our MMDiT."""

    mlp_ratio: float = option(4.0, help="width of the MLP over width of the tokens")
    qk_norm: str = option("", help="norm of queries and keys: none, RMSNorm or LayerNorm", choices=("", "rms", "ln"))


class TextToImage(SoftTokens, DiffusionModel):
    """A velocity model of captions. `forward` takes t in [0, 1], 1 = noise, and y: labels (B,) or text (B, L, D)."""

    conditioning = "text"
    time_scale = 1000.0
    token_strength: float = 1.0  # of the soft tokens where `forward` is not told: 0 leaves them out
    context: Tensor

    def __init__(self, network: nn.Module, config: Any) -> None:
        tokens = {"num_tokens": config.num_tokens, "num_layers": config.token_layers}
        width = config.token_width or config.hidden_size
        super().__init__(network, **tokens, token_width=width, time_offsets=config.time_offsets)
        self.config = config
        self.projectors = nn.ModuleList()
        if len(config.captions) != config.num_classes:
            raise UserError(f"{len(config.captions)} captions for {config.num_classes} labels")
        # not saved: it follows from the captions, the last row being the empty one; never on the meta device
        with torch.device("cpu"):
            table = encode([*config.captions, ""], num_words=config.num_words, width=config.context_size)
        self.register_buffer("context", table, persistent=False)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what is denoised, which may be no square."""
        height, width = self.config.input_shape or (self.config.input_size, self.config.input_size)
        return self.config.in_channels, height, width

    @property
    def has_soft_tokens(self) -> bool:
        """Whether there are soft tokens before the text."""
        return self.dc_tokens is not None

    def text(self, y: Tensor) -> Tensor:
        """Return the text tokens (B, L, D) of labels (B,), `null_label` being the empty caption."""
        return self.context[y]

    def null_condition(self, count: int) -> Tensor:
        """Return the label of the empty caption, (count,)."""
        return torch.full((count,), self.null_label, device=self.context.device)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor,
        pooled: Tensor | None = None,
        *,
        tokens: bool | float | None = None,
        taps: Collection[int] = (),
        contexts: Collection[int] = (),
    ) -> tuple[Tensor, dict[Any, Tensor]]:
        """Return (velocity (B, C, H, W), hidden) as SoftTokens does; t in [0, 1], y labels or text tokens."""
        given = y if y.is_floating_point() else self.text(y).to(x.dtype)
        strength = self.token_strength if tokens is None else tokens
        return super().forward(x, t, given, pooled, tokens=strength, taps=taps, contexts=contexts)

    @contextmanager
    def at_strength(self, strength: float) -> Iterator[None]:
        """Let the soft tokens count that much meanwhile: 0 for the frozen network alone."""
        before, self.token_strength = self.token_strength, strength
        try:
            yield
        finally:
            self.token_strength = before


@model(
    "SD3",
    defaults=SD3Config(),
    presets={
        "SD3-medium": {"context_size": 4096},
        "SD3-digits": {
            "input_size": 16, "in_channels": 1, "depth": 4, "hidden_size": 64, "num_heads": 4,
            "pooled_size": 64, "positions": 16,
        },
    },
    abilities=("captions", "soft tokens"),
)  # fmt: skip
class SD3(TextToImage):
    """Stable Diffusion 3's transformer as diffusers builds it. (Its package is asked for when one is built.)"""

    def __init__(self, config: SD3Config) -> None:
        network: Any = build_sd3(config.of_diffusers())
        super().__init__(network, config)
        # these can learn nothing: the pooled text is 0 here, and nobody reads what the last block's text asks for
        network.time_text_embed.text_embedder.linear_1.weight.requires_grad_(False)
        network.transformer_blocks[-1].attn.add_q_proj.requires_grad_(False)


@model(
    "MMDiT-text",
    defaults=MMDiTTextConfig(),
    presets={
        "MMDiT-text": {"in_channels": 4, "input_size": 32, "hidden_size": 768, "context_size": 768},
        "MMDiT-digits": {
            "input_size": 16, "in_channels": 1, "depth": 4, "hidden_size": 64, "num_heads": 4, "qk_norm": "rms",
        },
    },
    abilities=("captions", "soft tokens"),
)  # fmt: skip
class MMDiTText(TextToImage):
    """REPA's text-to-image transformer on captions; needs no further package."""

    def __init__(self, config: MMDiTTextConfig) -> None:
        own = ("input_size", "patch_size", "in_channels", "depth", "hidden_size", "num_heads", "context_size")
        fields = {name: getattr(config, name) for name in (*own, "mlp_ratio", "qk_norm")}
        super().__init__(MMDiT(MMDiTConfig(**fields)), config)
