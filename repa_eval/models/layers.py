"""Layers that several architectures of the family share, with the official parameter names."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repa_eval.errors import UserError


class DiffusionModel(nn.Module):
    """What every diffusion model of ours has, beside `forward(x, t, y, *, taps)`.

    config: its arguments (depth, in_channels, input_size, num_classes, ...). projectors: heads to teacher features.
    """

    config: Any
    projectors: nn.ModuleList

    @property
    def null_label(self) -> int:
        """The label that means "no class"."""
        return int(self.config.num_classes)


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
    omega = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    axis = torch.arange(side, dtype=torch.float64)[:, None] * omega  # (side, width/4)
    code = torch.cat([axis.sin(), axis.cos()], dim=1)  # (side, width/2)
    columns = code[None].expand(side, side, -1)
    rows = code[:, None].expand(side, side, -1)
    return torch.cat([columns, rows], dim=-1).reshape(side * side, width).float()


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
    """Multi-head self-attention with qkv bias and optional LayerNorm of queries and keys per head (eps 1e-5)."""

    def __init__(self, width: int, num_heads: int, *, qk_norm: bool = False, fused_attn: bool = True) -> None:
        super().__init__()
        if width % num_heads:
            raise UserError(f"hidden_size {width} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.fused_attn = fused_attn
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.LayerNorm(width // num_heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(width // num_heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, D) from x (B, N, D)."""
        batch, tokens, width = x.shape
        head_width = width // self.num_heads
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, head_width).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # each (B, heads, N, head_width)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.fused_attn:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = ((q * head_width**-0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return out


def xavier(linear: nn.Module) -> None:
    """Initialise a linear layer as MAE and DiT do: xavier weights, zero bias."""
    assert isinstance(linear, nn.Linear)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)


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


def check_taps(taps: Collection[int], depth: int) -> None:
    """UserError unless every layer in `taps` exists in a model of `depth` blocks."""
    for layer in taps:
        if not 0 <= layer <= depth:
            raise UserError(f"layer {layer}: this model has blocks 1..{depth}")
