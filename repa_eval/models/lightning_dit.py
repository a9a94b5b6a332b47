"""LightningDiT as GMem uses it (arXiv 2412.08781): a transformer conditioned on a memory snippet, not on a class.

Parameter names, initialisation and arithmetic are those of LINs-lab/GMem. Time runs from noise (0) to data (1).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repa_eval.config import option
from repa_eval.errors import UserError
from repa_eval.interfaces.architecture import Shapes, model
from repa_eval.models.shared.lightning import LightningBackbone, LightningConfig, backbone_fields


@dataclass(frozen=True, kw_only=True)
class LightningDiTConfig(LightningConfig):
    """Arguments of LightningDiT with a memory bank."""

    condition_size: int = option(768, help="width of a snippet", least=1)
    condition_dropout: float = option(0.4, help="share of a snippet's entries that training sets to 0")
    bank_size: int = option(0, help="snippets of the memory bank that lies in the checkpoint; 0 = none does", least=0)
    bank_dim: int = option(0, help="directions of that bank's SVD form; 0 = it is whole", least=0)


PRESETS = {
    "LightningDiT-B/1": {"depth": 12, "hidden_size": 768, "num_heads": 12, "patch_size": 1},
    "LightningDiT-XL/1": {"depth": 28, "hidden_size": 1152, "num_heads": 16, "patch_size": 1},
    "LightningDiT-digits/2": {"depth": 6, "hidden_size": 64, "num_heads": 4, "patch_size": 2, "projector_dim": 256},
}


def read_lightning_dit(shapes: Shapes) -> dict[str, Any] | None:
    """Return the config fields that a state dict's shapes tell, None if it is no LightningDiT with a memory bank.

    Not told: condition_dropout; num_heads where there are neither rotary tables nor norms of queries.
    """
    condition = shapes.get("condition_projection.linear.weight")
    fields = None if condition is None else backbone_fields(shapes)
    if condition is None or fields is None:
        return None
    return {**fields, "condition_size": condition[1], **_bank_fields(shapes)}


def _bank_fields(shapes: Shapes) -> dict[str, Any]:
    rows, codes = shapes.get("memory.snippets", (0, 0)), shapes.get("memory.C", (0, 0))
    return {"bank_size": rows[0] or codes[0], "bank_dim": codes[1]}


class SnippetMemory(nn.Module):
    """The memory bank beside a network, so that it draws its own snippets: the tensors that a bank consists of."""

    def __init__(self, size: int, width: int, dim: int) -> None:
        super().__init__()
        svd = {"C": (size, dim), "M": (width, dim), "S": (dim,), "mean": (width,)}
        for name, shape in (svd if dim else {"snippets": (size, width)}).items():
            self.register_buffer(name, torch.zeros(shape))

    def tensors(self) -> dict[str, Tensor]:
        """Return name -> tensor; how snippets are read from them, the bank knows."""
        return dict(self.named_buffers())

    def describe(self) -> str:
        """Return the form and the size in words."""
        tensors = self.tensors()
        codes = tensors.get("C")
        form = "full" if codes is None else f"svd, {codes.shape[1]} directions"
        return f"{len(next(iter(tensors.values())))} snippets, {form}"


class SnippetProjection(nn.Module):
    """The condition from a memory snippet, in the place of a label table."""

    def __init__(self, condition_size: int, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(condition_size, hidden_size)

    def forward(self, snippets: Tensor) -> Tensor:
        """Return (B, D) from snippets (B, condition_size)."""
        projected: Tensor = self.linear(snippets)
        return projected


@model("LightningDiT", defaults=LightningDiTConfig(), presets=PRESETS, read=read_lightning_dit)
class LightningDiT(LightningBackbone):
    """The backbone with the projection of a snippet in the place of a label table."""

    conditioning = "snippet"

    def __init__(self, config: LightningDiTConfig) -> None:
        super().__init__(config)
        self.memory = (
            SnippetMemory(config.bank_size, config.condition_size, config.bank_dim) if config.bank_size else None
        )

    def embed_condition(self, config: LightningDiTConfig) -> Sequence[nn.Module]:
        """Make the projection of a snippet, which starts as every linear layer."""
        self.condition_projection = SnippetProjection(config.condition_size, config.hidden_size)
        return ()

    @property
    def num_classes(self) -> int:
        """0: there are no labels."""
        return 0

    @property
    def condition_width(self) -> int:
        """Width of a snippet."""
        return int(self.config.condition_size)

    @property
    def snippet_memory(self) -> SnippetMemory | None:
        """The memory bank that is stored with the weights."""
        return self.memory

    @property
    def null_label(self) -> int:
        """UserError: there are no labels."""
        raise UserError("LightningDiT is conditioned on memory snippets, not on labels")

    def null_condition(self, count: int) -> Tensor:
        """Return zeros (count, condition_size), whose embedding is the projection's bias: what guidance compares with.

        Training never sees a whole snippet dropped.
        """
        return self.condition_projection.linear.weight.new_zeros(count, self.config.condition_size)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor,
        *,
        taps: Collection[int] = (),
        attention: Collection[int] = (),
        keep: Tensor | None = None,
    ) -> tuple[Tensor, dict[Any, Tensor]]:
        """Return (velocity data - noise (B, C, H, W), hidden) for noisy x (B, C, H, W), t (B,), snippets y (B, 768).

        t: 0 = noise, 1 = data. y: L2-normalised by the caller. keep: 1 or 0 for every entry of y (B, 768), in
        training: what is kept is divided by 1 - condition_dropout. taps and attention as in SiT.
        """
        if keep is not None:
            y = y * keep / (1 - self.config.condition_dropout)
        c = self.t_embedder(t) + self.condition_projection(y)  # (B, D)
        return self.conditioned(x, c, taps=taps, attention=attention)
