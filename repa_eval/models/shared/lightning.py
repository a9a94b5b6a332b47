"""LightningDiT's backbone (arXiv 2501.01423): a SiT with RMSNorm, SwiGLU and rotary positions, whatever conditions it.

Parameter names, initialisation and arithmetic are those of hustvl/LightningDiT and LINs-lab/GMem.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from repa_eval.config import option
from repa_eval.diffusion.conventions import REVERSED
from repa_eval.diffusion.model import DiffusionModel, check_taps
from repa_eval.errors import UserError
from repa_eval.interfaces.architecture import Shapes
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
class LightningConfig:
    """Arguments of the backbone; input_size, in_channels and z_dims follow from data and teachers in training."""

    input_size: int = option(16, help="side of the latent")
    patch_size: int = option(1, help="side of a patch", least=1)
    in_channels: int = option(32, help="channels of the latent")
    hidden_size: int = option(1152, help="width of the tokens", least=1)
    depth: int = option(28, help="number of blocks", least=1)
    num_heads: int = option(16, help="attention heads", least=1)
    mlp_ratio: float = option(4.0, help="width of the MLP over width of the tokens, before SwiGLU's two thirds")
    z_dims: tuple[int, ...] = option((), help="widths of the teachers' features, one projector each")
    projector_dim: int = option(2048, help="hidden width of the projectors", least=1)
    use_qknorm: bool = option(False, help="norm of queries and keys")
    use_swiglu: bool = option(True, help="SwiGLU, else an MLP with tanh GELU")
    use_rope: bool = option(True, help="rotary positions in addition to the fixed ones")
    use_rmsnorm: bool = option(True, help="RMSNorm with weights, else LayerNorm without (with, in use_qknorm)")
    wo_shift: bool = option(False, help="blocks are scaled and gated by the condition, but not shifted")
    fused_attn: bool = option(True, help="torch's fused attention")


def backbone_fields(shapes: Shapes) -> dict[str, Any] | None:
    """Return the config fields that a state dict's shapes tell, None if it is no patch transformer.

    Not told: num_heads where there are neither rotary tables nor norms of queries.
    """
    fields = transformer_fields(shapes)
    if fields is None:
        return None
    width, table = fields["hidden_size"], shapes.get("feat_rope.freqs_cos")
    if table is not None:
        fields["num_heads"] = width // table[1]
    gated = shapes.get("blocks.0.mlp.w3.weight")
    return {
        **fields,
        **({"mlp_ratio": _ratio_of(width, gated[1])} if gated else mlp_ratio(shapes)),
        **projector_widths(shapes, "projector"),
        "use_qknorm": "blocks.0.attn.q_norm.weight" in shapes,
        "use_swiglu": gated is not None,
        "use_rope": table is not None,
        "use_rmsnorm": "final_layer.norm_final.weight" in shapes,
        "wo_shift": shapes["blocks.0.adaLN_modulation.1.weight"][0] == 4 * width,
    }


class LightningBackbone(DiffusionModel):
    """Transformer with RMSNorm, SwiGLU and rotary positions. Unlike SiT, a fresh one does NOT output 0. Abstract.

    A subclass has `embed_condition`, which makes the embedder of its condition, and `conditioned`.
    outputs: values of a pixel that the final layer gives over the latent's channels; those beyond them are left out.
    """

    native = REVERSED
    config: Any
    outputs: int = 1

    def __init__(self, config: LightningConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        if config.input_size % config.patch_size:
            raise UserError(f"patch_size {config.patch_size} does not divide the latent's side {config.input_size}")
        side = config.input_size // config.patch_size
        self.x_embedder = PatchEmbed(config.input_size, config.patch_size, config.in_channels, width)
        self.t_embedder = TimestepEmbedder(width)
        tables = self.embed_condition(config)
        self.pos_embed = nn.Parameter(sincos_table(width, side)[None], requires_grad=False)
        self.blocks = nn.ModuleList(_block(config) for _ in range(config.depth))
        self.feat_rope = FastRope(width // config.num_heads, side) if config.use_rope else None
        self.projector = nn.ModuleList()  # the published name, without s
        values = config.patch_size**2 * config.in_channels * self.outputs
        self.final_layer = FinalLayer(width, values, norm=_norm(config))
        initialise_open(self, (*tables, self.t_embedder.mlp[0], self.t_embedder.mlp[2]))
        self.projector.extend(teacher_heads(config))

    @abstractmethod
    def embed_condition(self, config: Any) -> Sequence[nn.Module]:
        """Make the embedder of the condition; return its tables, which start with N(0, 0.02)."""

    @property
    def projectors(self) -> nn.ModuleList:  # type: ignore[override]
        """The heads to teacher features, by the name that all models share."""
        return self.projector

    def conditioned(
        self,
        x: Tensor,
        c: Tensor,
        *,
        taps: Collection[int] = (),
        attention: Collection[int] = (),
    ) -> tuple[Tensor, dict[Any, Tensor]]:
        """Return (velocity data - noise (B, C, H, W), hidden) for noisy x (B, C, H, W) and the condition c (B, D).

        taps and attention as in SiT.
        """
        check_taps((*taps, *attention), self.depth)
        hidden: dict[Any, Tensor] = {}
        channels = x.shape[1]
        x = self.x_embedder(x) + self.pos_embed  # (B, N, D)
        x = run_blocks(self.blocks, x, c, hidden, taps=taps, attention=attention, rotate=self.feat_rope)
        return unpatchify(self.final_layer(x, c), self.config.patch_size)[:, :channels], hidden


def rms_norm(width: int) -> nn.RMSNorm:
    """Return the RMSNorm of LightningDiT: with weights, eps 1e-6."""
    return nn.RMSNorm(width, eps=1e-6)


def _norm(config: LightningConfig) -> Callable[[int], nn.Module]:
    return rms_norm if config.use_rmsnorm else plain_norm


def _block(config: LightningConfig) -> Block:
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
