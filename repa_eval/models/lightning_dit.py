"""LightningDiT as GMem uses it (arXiv 2412.08781): a transformer conditioned on a memory snippet, not on a class.

Parameter names, initialisation and arithmetic are those of LINs-lab/GMem. Time runs from noise (0) to data (1).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repa_eval.config import option
from repa_eval.diffusion.conventions import REVERSED
from repa_eval.diffusion.model import DiffusionModel, check_taps
from repa_eval.errors import UserError
from repa_eval.interfaces.architecture import Shapes, model
from repa_eval.models.shared.blocks import (
    Block,
    FinalLayer,
    SwiGLU,
    gelu_mlp,
    initialise_open,
    plain_norm,
    run_blocks,
    teacher_heads,
    unpatchify,
)
from repa_eval.models.shared.layers import Attention, PatchEmbed, TimestepEmbedder, sincos_table
from repa_eval.models.shared.rotary import FastRope
from repa_eval.models.shared.state_dict_shapes import mlp_ratio, projector_widths, transformer_fields


@dataclass(frozen=True, kw_only=True)
class LightningDiTConfig:
    """Arguments of LightningDiT; input_size, in_channels and z_dims follow from data and teachers in training."""

    input_size: int = option(16, help="side of the latent")
    patch_size: int = option(1, help="side of a patch", least=1)
    in_channels: int = option(32, help="channels of the latent")
    hidden_size: int = option(1152, help="width of the tokens", least=1)
    depth: int = option(28, help="number of blocks", least=1)
    num_heads: int = option(16, help="attention heads", least=1)
    mlp_ratio: float = option(4.0, help="width of the MLP over width of the tokens, before SwiGLU's two thirds")
    condition_size: int = option(768, help="width of a snippet", least=1)
    condition_dropout: float = option(0.4, help="share of a snippet's entries that training sets to 0")
    z_dims: tuple[int, ...] = option((), help="widths of the teachers' features, one projector each")
    projector_dim: int = option(2048, help="hidden width of the projectors", least=1)
    use_qknorm: bool = option(False, help="norm of queries and keys")
    use_swiglu: bool = option(True, help="SwiGLU, else an MLP with tanh GELU")
    use_rope: bool = option(True, help="rotary positions in addition to the fixed ones")
    use_rmsnorm: bool = option(True, help="RMSNorm with weights, else LayerNorm without (with, in use_qknorm)")
    wo_shift: bool = option(False, help="blocks are scaled and gated by the condition, but not shifted")
    fused_attn: bool = option(True, help="torch's fused attention")
    bank_size: int = option(0, help="snippets of the memory bank that lies in the checkpoint; 0 = none does", least=0)
    bank_dim: int = option(0, help="directions of that bank's SVD form; 0 = it is whole", least=0)


PRESETS = {
    "LightningDiT-B/1": {"depth": 12, "hidden_size": 768, "num_heads": 12, "patch_size": 1},
    "LightningDiT-XL/1": {"depth": 28, "hidden_size": 1152, "num_heads": 16, "patch_size": 1},
    "LightningDiT-digits/2": {"depth": 6, "hidden_size": 64, "num_heads": 4, "patch_size": 2, "projector_dim": 256},
}


def read_lightning_dit(shapes: Shapes) -> dict[str, Any] | None:
    """Return the config fields that a state dict's shapes tell, None if it is no LightningDiT.

    Not told: condition_dropout; num_heads where there are neither rotary tables nor norms of queries.
    """
    fields, condition = transformer_fields(shapes), shapes.get("condition_projection.linear.weight")
    if fields is None or condition is None:
        return None
    width, table = fields["hidden_size"], shapes.get("feat_rope.freqs_cos")
    if table is not None:
        fields["num_heads"] = width // table[1]
    gated = shapes.get("blocks.0.mlp.w3.weight")
    return {
        **fields,
        **({"mlp_ratio": _ratio_of(width, gated[1])} if gated else mlp_ratio(shapes)),
        **projector_widths(shapes, "projector"),
        "condition_size": condition[1],
        "use_qknorm": "blocks.0.attn.q_norm.weight" in shapes,
        "use_swiglu": gated is not None,
        "use_rope": table is not None,
        "use_rmsnorm": "final_layer.norm_final.weight" in shapes,
        "wo_shift": shapes["blocks.0.adaLN_modulation.1.weight"][0] == 4 * width,
        **_bank_fields(shapes),
    }


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
class LightningDiT(DiffusionModel):
    """Transformer with RMSNorm, SwiGLU and rotary positions. Unlike SiT, a fresh one does NOT output 0."""

    native = REVERSED
    conditioning = "snippet"

    def __init__(self, config: LightningDiTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        if config.input_size % config.patch_size:
            raise UserError(f"patch_size {config.patch_size} does not divide the latent's side {config.input_size}")
        side = config.input_size // config.patch_size
        self.x_embedder = PatchEmbed(config.input_size, config.patch_size, config.in_channels, width)
        self.t_embedder = TimestepEmbedder(width)
        self.condition_projection = SnippetProjection(config.condition_size, width)
        self.pos_embed = nn.Parameter(sincos_table(width, side)[None], requires_grad=False)
        self.blocks = nn.ModuleList(_block(config) for _ in range(config.depth))
        self.feat_rope = FastRope(width // config.num_heads, side) if config.use_rope else None
        self.projector = nn.ModuleList()  # the published name, without s
        self.final_layer = FinalLayer(width, config.patch_size**2 * config.in_channels, norm=_norm(config))
        initialise_open(self, (self.t_embedder.mlp[0], self.t_embedder.mlp[2]))
        self.projector.extend(teacher_heads(config))
        self.memory = (
            SnippetMemory(config.bank_size, config.condition_size, config.bank_dim) if config.bank_size else None
        )

    @property
    def projectors(self) -> nn.ModuleList:  # type: ignore[override]
        """The heads to teacher features, by the name that all models share."""
        return self.projector

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
        check_taps((*taps, *attention), self.depth)
        hidden: dict[Any, Tensor] = {}
        if keep is not None:
            y = y * keep / (1 - self.config.condition_dropout)
        x = self.x_embedder(x) + self.pos_embed  # (B, N, D)
        c = self.t_embedder(t) + self.condition_projection(y)  # (B, D)
        x = run_blocks(self.blocks, x, c, hidden, taps=taps, attention=attention, rotate=self.feat_rope)
        return unpatchify(self.final_layer(x, c), self.config.patch_size), hidden


def rms_norm(width: int) -> nn.RMSNorm:
    """Return the RMSNorm of LightningDiT: with weights, eps 1e-6."""
    return nn.RMSNorm(width, eps=1e-6)


def _norm(config: LightningDiTConfig) -> Callable[[int], nn.Module]:
    return rms_norm if config.use_rmsnorm else plain_norm


def _block(config: LightningDiTConfig) -> Block:
    width = config.hidden_size
    head_norm = rms_norm if config.use_rmsnorm else nn.LayerNorm  # eps 1e-5 and weights, unlike the blocks' norms
    attn = Attention(width, config.num_heads, qk_norm=config.use_qknorm, norm=head_norm, fused_attn=config.fused_attn)
    if config.use_swiglu:
        mlp: nn.Module = SwiGLU(width, _gated_width(width, config.mlp_ratio))
    else:
        mlp = gelu_mlp(width, config.mlp_ratio)
    return Block(width, attn=attn, mlp=mlp, norm=_norm(config), shift=not config.wo_shift)


def _gated_width(width: int, ratio: float) -> int:
    # SwiGLU has three matrices: two thirds of the width keep the parameters of an MLP
    return int(2 / 3 * int(width * ratio))


def _ratio_of(width: int, hidden: int) -> float:
    """Return a ratio whose SwiGLU is `hidden` wide; of the many, a whole one where there is one."""
    whole = float(round(1.5 * hidden / width))
    return whole if _gated_width(width, whole) == hidden else (1.5 * hidden + 1.25) / width
