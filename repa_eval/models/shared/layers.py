"""Layers that several architectures of the family share, with the official parameter names."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repa_eval.errors import UserError


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return x (B, N, D) scaled by 1 + scale (B, D) and shifted by shift (B, D)."""
    return torch.addcmul(shift.unsqueeze(1), x, 1 + scale.unsqueeze(1))


def sincos_table(width: int, side: int) -> Tensor:
    """Return the fixed 2-D sin-cos position table, float32 (side^2, width).

    Per axis width/2 numbers, sines then cosines, frequencies 10000^(-i/(width/4)); the first half codes the
    COLUMN of a token, the second its row (as in MAE, DiT, SiT, REPA). UserError unless 4 divides width.
    """
    if width % 4:
        raise UserError(f"hidden_size {width} is not a multiple of 4, which the position table needs")
    steps = torch.arange(width // 4, dtype=torch.float64, device="cpu")  # a table is a table, also in a meta model
    omega = 10000.0 ** -(steps / (width / 4))
    axis = torch.arange(side, dtype=torch.float64, device="cpu")[:, None] * omega  # (side, width/4)
    code = torch.cat([axis.sin(), axis.cos()], dim=1)  # (side, width/2)
    columns = code[None].expand(side, side, -1)
    rows = code[:, None].expand(side, side, -1)
    return torch.cat([columns, rows], dim=-1).reshape(side * side, width).float()


class PatchEmbed(nn.Module):
    """Images cut into squares, each mapped to a token. (timm has one; importing timm costs 0.2 GB and a second.)"""

    def __init__(
        self, input_size: int | None, patch_size: int, in_channels: int, width: int, *, bias: bool = True
    ) -> None:
        super().__init__()
        self.input_size = input_size  # None: any
        self.proj = nn.Conv2d(in_channels, width, kernel_size=patch_size, stride=patch_size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (B, N, D), row by row, of images x (B, C, H, W); UserError for images of another size."""
        if self.input_size is not None and x.shape[-2:] != (self.input_size, self.input_size):
            given = "x".join(map(str, x.shape[-2:]))
            raise UserError(f"the input is {given}; this model reads {self.input_size}x{self.input_size}")
        tokens: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return tokens


class Mlp(nn.Module):
    """Two linear maps with an activation between; linear: nn.Linear on tokens, or a 1x1 convolution on maps."""

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        act: Callable[[], nn.Module] = nn.GELU,
        linear: Callable[[int, int], nn.Module] = nn.Linear,
    ) -> None:
        super().__init__()
        self.fc1 = linear(width, hidden)
        self.act = act()
        self.fc2 = linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x."""
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class TimestepEmbedder(nn.Module):
    """t in [0, 1], NOT multiplied by 1000, as 256 cosines then sines, and a two-layer MLP to the model's width."""

    def __init__(self, hidden_size: int, frequency_size: int = 256) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(frequency_size, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))
        self.frequency_size = frequency_size

    def forward(self, t: Tensor) -> Tensor:
        """Return (B, D) from t (B,)."""
        half = self.frequency_size // 2
        exponents = torch.arange(half, dtype=torch.float32, device=t.device)
        angles = t[:, None].float() * torch.exp(-math.log(10000) * exponents / half)
        code = torch.cat([angles.cos(), angles.sin()], dim=-1)
        embedding: Tensor = self.mlp(code.to(next(self.mlp.parameters()).dtype))
        return embedding


class LabelEmbedder(nn.Module):
    """A table of class labels; its last row is the null label where labels are dropped in training."""

    def __init__(self, num_classes: int, hidden_size: int, dropout_prob: float) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + (dropout_prob > 0), hidden_size)
        self.num_classes = num_classes

    def forward(self, labels: Tensor) -> Tensor:
        """Return (B, D) from labels (B,), `num_classes` being the null label."""
        embedding: Tensor = self.embedding_table(labels)
        return embedding


class Attention(nn.Module):
    """Multi-head self-attention with qkv bias and optional norm of queries and keys per head.

    norm: the norm's class, built from the head width; the family's published one is LayerNorm with eps 1e-5.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        qk_norm: bool = False,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        fused_attn: bool = True,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        if width % num_heads:
            raise UserError(f"hidden_size {width} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.fused_attn = fused_attn
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.q_norm = norm(width // num_heads) if qk_norm else nn.Identity()
        self.k_norm = norm(width // num_heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: Tensor, rotate: Callable[[Tensor], Tensor] | None = None, *, logits: list[Tensor] | None = None
    ) -> Tensor:
        """Return (B, N, D) from x (B, N, D).

        rotate: a rotary position embedding, applied to queries and keys (B, heads, N, head width) after their norm.
        logits: a list to which (q head_width^-0.5) k^T, (B, heads, N, N), is appended; fused attention never has them.
        """
        batch, tokens, width = x.shape
        q, k, v = self.heads(x, rotate)
        if self.fused_attn and logits is None:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
            if logits is not None:
                logits.append(scores)
            mixed = scores.softmax(dim=-1) @ v
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return out

    def heads(self, x: Tensor, rotate: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each (B, heads, N, head width), as they enter the attention."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        return (q, k, v) if rotate is None else (rotate(q), rotate(k), v)


def xavier(linear: nn.Module) -> None:
    """Initialise a linear layer as MAE and DiT do: xavier weights, zero bias if it has one."""
    assert isinstance(linear, nn.Linear)
    nn.init.xavier_uniform_(linear.weight)
    zero(linear, only="bias")


def zero(layer: nn.Module, *, only: str = "") -> None:
    """Set a layer's parameters to zero, or only those of one name."""
    for name, parameter in layer.named_parameters():
        if only in ("", name):
            nn.init.zeros_(parameter)


def projector(width: int, hidden: int, out: int) -> nn.Sequential:
    """Return REPA's head from hidden states to teacher features: Linear SiLU Linear SiLU Linear, per token."""
    return nn.Sequential(
        nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, out)
    )
