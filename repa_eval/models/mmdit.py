"""MMDiT, the text-to-image network of REPA and HASTE (arXiv 2403.03206, 2410.06940): text and image in one attention.

Parameter names and arithmetic are those of sihyun-yu/REPA. Time alone is the condition of adaLN; no pooled text.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repa_eval.config import option
from repa_eval.diffusion.model import DiffusionModel, check_taps
from repa_eval.errors import UserError
from repa_eval.interfaces.architecture import Shapes, model
from repa_eval.models.shared.blocks import Block, FinalLayer, gelu_mlp, plain_norm, unpatchify
from repa_eval.models.shared.layers import Attention, PatchEmbed, TimestepEmbedder, modulate, projector, sincos_table
from repa_eval.models.shared.state_dict_shapes import count, mlp_ratio, projector_widths

# query and key norms by their published name; both have weights
HEAD_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "": lambda width: nn.Identity(),
    "rms": lambda width: nn.RMSNorm(width, eps=1e-6),
    "ln": lambda width: nn.LayerNorm(width, eps=1e-6),
}


@dataclass(frozen=True, kw_only=True)
class MMDiTConfig:
    """Arguments of MMDiT; the published one has width 32*depth and heads of width 32."""

    input_size: int = option(32, help="side of the largest latent; smaller ones take the centre of the positions")
    patch_size: int = option(2, help="side of a patch", least=1)
    in_channels: int = option(4, help="channels of the latent")
    hidden_size: int = option(768, help="width of the tokens", least=1)
    depth: int = option(24, help="number of joint blocks", least=1)
    num_heads: int = option(24, help="attention heads", least=1)
    mlp_ratio: float = option(4.0, help="width of the MLP over width of the tokens")
    context_size: int = option(768, help="width of the text tokens", least=1)
    z_dims: tuple[int, ...] = option((), help="widths of the teachers' features, one projector each")
    projector_dim: int = option(2048, help="hidden width of the projectors", least=1)
    qk_norm: str = option("", help="norm of queries and keys: none, RMSNorm or LayerNorm", choices=tuple(HEAD_NORMS))


PRESETS = {"MMDiT": {"depth": 24, "hidden_size": 768, "num_heads": 24}}


def read_mmdit(shapes: Shapes) -> dict[str, Any] | None:
    """Return the config fields that a state dict's shapes tell, None if it is no such MMDiT.

    Without a norm of queries the number of heads is not told: 32 wide, as published, is assumed.
    """
    first = "joint_blocks.0.x_block"
    patch, positions, text = (
        shapes.get(name) for name in ("x_embedder.proj.weight", "pos_embed", "context_embedder.weight")
    )
    if patch is None or positions is None or text is None or f"{first}.attn.qkv.weight" not in shapes:
        return None
    width, head = patch[0], shapes.get(f"{first}.attn.ln_q.weight")
    return {
        "input_size": round(positions[1] ** 0.5) * patch[2],
        "patch_size": patch[2],
        "in_channels": patch[1],
        "hidden_size": width,
        "depth": count(shapes, "joint_blocks"),
        "num_heads": width // (head[0] if head else 32),
        **mlp_ratio(shapes, f"{first}.mlp.fc1.weight"),
        "context_size": text[1],
        **projector_widths(shapes),
        "qk_norm": "" if head is None else "ln" if f"{first}.attn.ln_q.bias" in shapes else "rms",
    }


class StreamAttention(Attention):
    """One stream's share of a joint attention: its queries, keys and values, and its way out if it has one."""

    def __init__(self, config: MMDiTConfig, *, out: bool = True) -> None:
        width, heads = config.hidden_size, config.num_heads
        super().__init__(width, heads)
        self.ln_q, self.ln_k = (HEAD_NORMS[config.qk_norm](width // heads) for _ in range(2))
        if not out:
            self.proj = None  # type: ignore[assignment]

    def heads(self, x: Tensor, rotate: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each (B, heads, N, head width), as they enter the attention."""
        q, k, v = super().heads(x, rotate)
        return self.ln_q(q), self.ln_k(k), v


class ContextEntry(nn.Module):
    """The text stream of the last block: it is attended to, and ends there."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm1 = plain_norm(width)
        self.attn = StreamAttention(config, out=False)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def chunks(self, c: Tensor) -> tuple[Tensor, ...]:
        """Return shift and scale, each (B, D)."""
        return self.adaLN_modulation(c).chunk(2, dim=-1)  # type: ignore[no-any-return]


class JointBlock(nn.Module):
    """A block of each stream, with weights of its own, and one attention over [text; image]."""

    def __init__(self, config: MMDiTConfig, *, last: bool) -> None:
        super().__init__()
        self.context_block = ContextEntry(config) if last else _block(config)
        self.x_block = _block(config)

    def forward(
        self, x: Tensor, context: Tensor, c: Tensor, *, logits: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return image tokens (B, N, D) and text tokens (B, L, D), None after the last block.

        logits: a list to which those of image queries and image keys, (B, heads, N, N), are appended.
        """
        chunks = [block.chunks(c) for block in (self.context_block, self.x_block)]
        text = _enter(self.context_block, context, chunks[0])
        image = _enter(self.x_block, x, chunks[1])
        if logits is not None:
            q, k, _ = image
            logits.append((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1))
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(text, image, strict=True))  # (B, heads, L + N, head width)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        of_text, of_image = mixed.split([context.shape[1], x.shape[1]], dim=1)
        x = _leave(self.x_block, x, of_image, chunks[1])
        if isinstance(self.context_block, ContextEntry):
            return x, None
        return x, _leave(self.context_block, context, of_text, chunks[0])


def _enter(block: Any, tokens: Tensor, chunks: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return a stream's queries, keys and values, each (B, heads, N, head width)."""
    heads: tuple[Tensor, Tensor, Tensor] = block.attn.heads(modulate(block.norm1(tokens), *chunks[:2]))
    return heads


def _leave(block: Block, tokens: Tensor, mixed: Tensor, chunks: Sequence[Tensor]) -> Tensor:
    """Return a stream's tokens (B, N, D) after the joint attention and its own MLP."""
    _, _, gate, *mlp = chunks
    return block.finish(tokens + gate.unsqueeze(1) * block.attn.proj(mixed), *mlp)


def _block(config: MMDiTConfig) -> Block:
    return Block(config.hidden_size, attn=StreamAttention(config), mlp=gelu_mlp(config.hidden_size, config.mlp_ratio))


@model("MMDiT", defaults=MMDiTConfig(), presets=PRESETS, read=read_mmdit)
class MMDiT(DiffusionModel):
    """Text-to-image transformer; hidden states are those of the image. Initialised as torch does, as published.

    null_context: the text encoder's tokens (L, context_size) of the empty prompt, if they are known.
    """

    conditioning = "text"
    pos_embed: Tensor
    null_context: Tensor | None = None

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.config = config
        width, depth = config.hidden_size, config.depth
        if config.input_size % config.patch_size:
            raise UserError(f"patch_size {config.patch_size} does not divide the latent's side {config.input_size}")
        self.x_embedder = PatchEmbed(None, config.patch_size, config.in_channels, width)
        self.t_embedder = TimestepEmbedder(width)
        self.context_embedder = nn.Linear(config.context_size, width)
        # a buffer here, a parameter in SiT: the EMA copies it
        self.register_buffer("pos_embed", sincos_table(width, config.input_size // config.patch_size)[None])
        self.joint_blocks = nn.ModuleList(JointBlock(config, last=layer == depth) for layer in range(1, depth + 1))
        self.final_layer = FinalLayer(width, config.patch_size**2 * config.in_channels)
        self.projectors = nn.ModuleList(projector(width, config.projector_dim, z) for z in config.z_dims)

    @property
    def reads_captions(self) -> bool:
        """Whether the features of the empty prompt are not known."""
        return self.null_context is None

    @property
    def num_classes(self) -> int:
        """0: there are no labels."""
        return 0

    @property
    def null_label(self) -> int:
        """UserError: there are no labels."""
        raise UserError("MMDiT is conditioned on text, not on labels")

    def null_condition(self, count: int) -> Tensor:
        """Return the text tokens of the empty prompt, (count, L, context_size); UserError if they are not known."""
        if self.null_context is None:
            raise UserError(
                "MMDiT's null condition is the text encoder's output for the empty prompt: set null_context"
            )
        return self.null_context.to(self.pos_embed).expand(count, -1, -1)

    def positions(self, height: int, width: int) -> Tensor:
        """Return the centre (1, height*width, D) of the position table."""
        side = self.config.input_size // self.config.patch_size
        if height > side or width > side:
            raise UserError(f"{height}x{width} patches: this model has positions for {side}x{side}")
        top, left = (side - height) // 2, (side - width) // 2
        table = self.pos_embed.unflatten(1, (side, side))
        return table[:, top : top + height, left : left + width].flatten(1, 2)

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor, *, taps: Collection[int] = (), attention: Collection[int] = ()
    ) -> tuple[Tensor, dict[Any, Tensor]]:
        """Return (velocity (B, C, H, W), hidden) for noisy x (B, C, H, W), t (B,), 1 = noise, text y (B, L, 768).

        taps: as in SiT, of the image tokens; 0 = after patch and position embedding. attention: layers whose logits
        between image tokens, (B, heads, N, N), are wanted: hidden["attention", layer].
        """
        check_taps((*taps, *attention), self.depth)
        hidden: dict[Any, Tensor] = {}
        patch = self.config.patch_size
        grid = x.shape[-2] // patch, x.shape[-1] // patch
        x = self.x_embedder(x) + self.positions(*grid)  # (B, N, D)
        context, c = self.context_embedder(y), self.t_embedder(t)  # (B, L, D), (B, D)
        if 0 in taps:
            hidden[0] = x
        for layer, block in enumerate(self.joint_blocks, 1):
            logits: list[Tensor] | None = [] if layer in attention else None
            x, context = block(x, context, c, logits=logits)
            if logits:
                hidden["attention", layer] = logits[0]
            if layer in taps:
                hidden[layer] = x
        return unpatchify(self.final_layer(x, c), patch, grid=grid), hidden
