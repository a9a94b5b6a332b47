"""SiT with rotary positions beside the fixed ones, and its warm-up stub (ERW, arXiv 2504.10188).

Parameter names and arithmetic are those of LINs-lab/ERW, whose file needs LightningDiT's rotary table to run at all.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from repa_eval.config import option
from repa_eval.diffusion.model import check_taps
from repa_eval.errors import UserError
from repa_eval.interfaces.architecture import Shapes, model
from repa_eval.models.shared.blocks import FinalLayer, PatchTransformer, TransformerConfig, run_blocks, unpatchify
from repa_eval.models.shared.rotary import FastRope
from repa_eval.models.shared.state_dict_shapes import EXTRAS, FINAL, SIT, has_parts, sit_fields
from repa_eval.models.sit import PRESETS as SIT_PRESETS

TABLES = frozenset(("feat_rope.freqs_cos", "feat_rope.freqs_sin"))


@dataclass(frozen=True, kw_only=True)
class SiTRopeConfig(TransformerConfig):
    """Arguments of SiT with rotary positions."""

    use_rope: bool = option(True, help="rotary positions in addition to the fixed ones")
    warmup: bool = option(False, help="the stub of the first stage: no final layer; depth is then that of the stub")


PRESETS = {name.replace("SiT", "SiT-ERW"): sizes for name, sizes in SIT_PRESETS.items()}


def read_sit_rope(shapes: Shapes) -> dict[str, Any] | None:
    """Return the config fields that a state dict's shapes tell, None if it is neither the full model nor the stub.

    A full model without rotary tables is a SiT in names and arithmetic, and is left to SiT.
    """
    warmup = "final_layer.linear.weight" not in shapes
    if not has_parts(shapes, SIT if warmup else SIT | FINAL | TABLES, extras=EXTRAS | TABLES):
        return None
    fields, table = sit_fields(shapes), shapes.get("feat_rope.freqs_cos")
    if table is not None:
        fields["num_heads"] = fields["hidden_size"] // table[1]
    return {**fields, "use_rope": table is not None, "warmup": warmup}


@model("SiT-ERW", defaults=SiTRopeConfig(), presets=PRESETS, read=read_sit_rope, abilities={"stub"})
class SiTRope(PatchTransformer):
    """SiT whose queries and keys turn with the place of their token; a fresh one outputs exactly 0, a stub None."""

    def __init__(self, config: SiTRopeConfig) -> None:
        super().__init__(config)
        width, side = config.hidden_size, config.input_size // config.patch_size
        self.feat_rope = FastRope(width // config.num_heads, side) if config.use_rope else None
        values = config.patch_size**2 * config.in_channels
        self.final_layer = None if config.warmup else FinalLayer(width, values)
        self.start()

    @property
    def stub(self) -> str:
        """The stub of the first stage has no final layer."""
        if not self.config.warmup:
            return ""
        return "the stub of ERW's first stage, which generates nothing; take a later checkpoint"

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor, *, taps: Collection[int] = (), attention: Collection[int] = ()
    ) -> tuple[Tensor | None, dict[Any, Tensor]]:
        """Return (velocity (B, C, H, W), None from a stub; hidden) for x (B, C, H, W), t (B,), labels y (B,).

        taps and attention as in SiT. A stub is given the CLEAN latent at t = 0.
        """
        check_taps((*taps, *attention), len(self.blocks))
        hidden: dict[Any, Tensor] = {}
        x = self.x_embedder(x) + self.pos_embed  # (B, N, D)
        c = self.condition(t, y)  # (B, D)
        x = run_blocks(self.blocks, x, c, hidden, taps=taps, attention=attention, rotate=self.feat_rope)
        if self.final_layer is None:
            return None, hidden
        return unpatchify(self.final_layer(x, c), self.config.patch_size), hidden


class Transfer(NamedTuple):
    """Names of the full model's state dict, sorted: those that stage 1 gave, and those that keep their start value."""

    copied: list[str]
    missing: list[str]


def transfer(stage1: nn.Module, full: nn.Module, *, first_block: int = 0) -> Transfer:
    """Copy all weights of the warm-up stub into the full model, in place; the projectors too, though they read deeper.

    first_block: how many blocks of the full model stand before those that are warmed (0 as published; the paper's
    placement ablation has 1 and 2). The full model's average (EMA) is given the same weights: call it once more.
    UserError where a weight of the stub has no place in the full model, which would be lost without a word.
    """
    given, own = stage1.state_dict(), full.state_dict()
    places = {name: _moved(name, first_block) for name in given}
    for name, place in places.items():
        if place not in own:
            raise UserError(f"stage 1 holds {name}, which the full model lacks")
        if given[name].shape != own[place].shape:
            shapes = tuple(given[name].shape), tuple(own[place].shape)
            raise UserError(f"{name} is {shapes[0]} in stage 1, {shapes[1]} in the full model")
    with torch.no_grad():
        for name, place in places.items():
            own[place].copy_(given[name])
    return Transfer(copied=sorted(places.values()), missing=sorted(set(own) - set(places.values())))


def _moved(name: str, by: int) -> str:
    """Return the name of a weight `by` blocks further on, the name itself if it is of no block."""
    return re.sub(r"^blocks\.(\d+)\.", lambda found: f"blocks.{int(found[1]) + by}.", name)
