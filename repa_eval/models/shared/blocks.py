"""What the transformers of the SiT family share: the adaLN-zero block, the final layer, patches, initialisation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repa_eval.config import option
from repa_eval.diffusion.model import DiffusionModel
from repa_eval.errors import UserError
from repa_eval.models.shared.layers import (
    Attention,
    LabelEmbedder,
    Mlp,
    PatchEmbed,
    TimestepEmbedder,
    modulate,
    projector,
    sincos_table,
    xavier,
    zero,
)

Rotate = Callable[[Tensor], Tensor]


class GELU(nn.GELU):
    """GELU by its tanh approximation, as published: the exact one moves a forward by 7e-5."""

    def __init__(self) -> None:
        super().__init__(approximate="tanh")


def plain_norm(width: int) -> nn.LayerNorm:
    """Return the family's LayerNorm: no parameters, eps 1e-6."""
    return nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)


def gelu_mlp(width: int, mlp_ratio: float) -> Mlp:
    """Return the family's MLP: Linear, tanh GELU, Linear."""
    return Mlp(width, int(width * mlp_ratio), act=GELU)


class SwiGLU(nn.Module):
    """Gated feed-forward: w3(silu(first half) * second half) of one linear map w12 to twice the hidden width."""

    def __init__(self, width: int, hidden: int, *, bias: bool = True) -> None:
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden, bias=bias)
        self.w3 = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, D) from x (B, N, D)."""
        gate, value = self.w12(x).chunk(2, dim=-1)
        out: Tensor = self.w3(F.silu(gate) * value)
        return out


class Block(nn.Module):
    """adaLN-zero block: 6 chunks of the condition shift, scale and gate the attention and the MLP.

    shift=False leaves the shifts out (4 chunks). attn, mlp and norm are given because some systems change them.
    """

    def __init__(
        self,
        width: int,
        *,
        attn: Attention,
        mlp: nn.Module,
        norm: Callable[[int], nn.Module] = plain_norm,
        shift: bool = True,
    ) -> None:
        super().__init__()
        self.shift = shift
        self.norm1 = norm(width)
        self.attn = attn
        self.norm2 = norm(width)
        self.mlp = mlp
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, (6 if shift else 4) * width))

    def forward(
        self, x: Tensor, c: Tensor, rotate: Rotate | None = None, *, logits: list[Tensor] | None = None
    ) -> Tensor:
        """Return tokens (B, N, D) from tokens x (B, N, D) and condition c (B, D); see Attention for the rest."""
        shift, scale, gate, *mlp = self.chunks(c)
        attended = self.attn(modulate(self.norm1(x), shift, scale), rotate, logits=logits)
        return self.finish(x + gate.unsqueeze(1) * attended, *mlp)

    def chunks(self, c: Tensor) -> tuple[Tensor, ...]:
        """Return shift, scale and gate of the attention, then those of the MLP, each (B, D)."""
        given = self.adaLN_modulation(c)
        if self.shift:
            return given.chunk(6, dim=-1)  # type: ignore[no-any-return]
        scale_a, gate_a, scale_m, gate_m = given.chunk(4, dim=-1)
        zeros = torch.zeros_like(scale_a)
        return zeros, scale_a, gate_a, zeros, scale_m, gate_m

    def finish(self, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        """Return the tokens (B, N, D) after the MLP, from those after the attention."""
        return x + gate.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift, scale))


class FinalLayer(nn.Module):
    """Modulated norm and the linear map from tokens to patches."""

    def __init__(self, width: int, patch_values: int, *, norm: Callable[[int], nn.Module] = plain_norm) -> None:
        super().__init__()
        self.norm_final = norm(width)
        self.linear = nn.Linear(width, patch_values)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Return patches (B, N, p*p*C) from tokens x (B, N, D) and condition c (B, D)."""
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=-1)
        patches: Tensor = self.linear(modulate(self.norm_final(x), shift, scale))
        return patches


def run_blocks(
    blocks: Sequence[Any] | nn.ModuleList,
    x: Tensor,
    c: Tensor,
    hidden: dict[Any, Tensor],
    *,
    taps: Any = (),
    attention: Any = (),
    rotate: Rotate | None = None,
) -> Tensor:
    """Return the tokens (B, N, D) after all blocks, and put what is asked for into `hidden`.

    taps: layers (1-based; 0 = before the first block) whose output goes to hidden[layer]; attention: layers whose
    logits (B, heads, N, N) go to hidden["attention", layer], computed for these blocks alone.
    """
    if 0 in taps:
        hidden[0] = x
    for layer, block in enumerate(blocks, 1):
        logits: list[Tensor] | None = [] if layer in attention else None
        x = block(x, c, rotate, logits=logits)
        if logits:
            hidden["attention", layer] = logits[0]
        if layer in taps:
            hidden[layer] = x
    return x


def unpatchify(patches: Tensor, patch_size: int, *, grid: tuple[int, int] | None = None) -> Tensor:
    """Return images (B, C, H, W) from patches (B, N, p*p*C); grid: their rows and columns, if these are no square."""
    batch, tokens, values = patches.shape
    rows, columns = grid or (int(tokens**0.5),) * 2
    p, channels = patch_size, values // patch_size**2
    blocks = patches.reshape(batch, rows, columns, p, p, channels)
    return blocks.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, rows * p, columns * p)


def initialise(model: Any, blocks: Sequence[nn.Module] | nn.ModuleList) -> None:
    """Initialise a network as DiT, SiT and REPA do: a fresh one outputs exactly 0.

    As `initialise_open`, then every adaLN and the final linear zero. Attributes: x_embedder, t_embedder, y_embedder,
    final_layer (None where there is none).
    """
    initialise_open(model, (model.y_embedder.embedding_table, model.t_embedder.mlp[0], model.t_embedder.mlp[2]))
    close(blocks, model.final_layer)


def initialise_open(model: Any, embedders: Iterable[nn.Module]) -> None:
    """Initialise linear layers by xavier with zero bias, x_embedder xavier as a matrix, `embedders` by N(0, 0.02)."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            xavier(module)
    patch = model.x_embedder.proj.weight
    nn.init.xavier_uniform_(patch.data.view(patch.shape[0], -1))
    zero(model.x_embedder.proj, only="bias")
    for layer in embedders:
        assert isinstance(layer, nn.Linear | nn.Embedding)
        nn.init.normal_(layer.weight, std=0.02)


def close(blocks: Iterable[nn.Module], final_layer: Any) -> None:
    """Set every adaLN of the blocks and of the final layer to zero, and the final linear: the output is exactly 0."""
    closed = [block.get_submodule("adaLN_modulation.1") for block in blocks]
    if final_layer is not None:
        closed += [final_layer.adaLN_modulation[-1], final_layer.linear]
    for linear in closed:
        zero(linear)


def teacher_heads(config: Any) -> list[nn.Sequential]:
    """Return one projector for each of config.z_dims, xavier-initialised."""
    heads = [projector(config.hidden_size, config.projector_dim, width) for width in config.z_dims]
    for module in nn.ModuleList(heads).modules():
        if isinstance(module, nn.Linear):
            xavier(module)
    return heads


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Arguments of SiT and its kin; input_size, in_channels, num_classes and z_dims follow from data and teachers."""

    input_size: int = option(32, help="side of the latent", least=1)
    patch_size: int = option(2, help="side of a patch", least=1)
    in_channels: int = option(4, help="channels of the latent", least=1)
    hidden_size: int = option(1152, help="width of the tokens", least=1)
    depth: int = option(28, help="number of blocks", least=1)
    num_heads: int = option(16, help="attention heads", least=1)
    mlp_ratio: float = option(4.0, help="width of the MLP over width of the tokens", least=1e-3)
    num_classes: int = option(1000, help="class labels; the null label is num_classes", least=0)
    class_dropout_prob: float = option(0.1, help="0 builds a label table without a null label", least=0, most=1)
    z_dims: tuple[int, ...] = option((), help="widths of the teachers' features, one projector each")
    projector_dim: int = option(2048, help="hidden width of the projectors", least=1)
    qk_norm: bool = option(False, help="LayerNorm of queries and keys")
    fused_attn: bool = option(True, help="torch's fused attention")


class PatchTransformer(DiffusionModel):
    """What SiT and its kin are built of: embedders, fixed positions, blocks, projectors. Abstract.

    A subclass adds its final_layer, calls `start()` last in its constructor, and has the forward.
    """

    config: Any
    final_layer: Any

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        if config.input_size % config.patch_size:
            raise UserError(f"patch_size {config.patch_size} does not divide the latent's side {config.input_size}")
        self.x_embedder = PatchEmbed(config.input_size, config.patch_size, config.in_channels, width)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelEmbedder(config.num_classes, width, config.class_dropout_prob)
        table = sincos_table(width, config.input_size // config.patch_size)
        front = table.new_zeros(self.prefix_tokens, width)  # tokens before the patches have no place
        # a parameter without gradient, as published: it is in the state_dict and the EMA averages it
        self.pos_embed = nn.Parameter(torch.cat([front, table])[None], requires_grad=False)
        self.blocks = nn.ModuleList(_plain_block(config) for _ in range(config.depth))
        self.projectors = nn.ModuleList()

    def start(self) -> None:
        """Initialise everything as published, and make the projectors."""
        initialise(self, self.blocks)
        # made last: from one seed, models with and without teachers start with the same weights elsewhere
        self.projectors.extend(teacher_heads(self.config))

    def condition(self, t: Tensor, y: Tensor) -> Tensor:
        """Return c (B, D), the sum of the embedded times t (B,) and labels y (B,)."""
        embedded: Tensor = self.t_embedder(t) + self.y_embedder(y)
        return embedded


def _plain_block(config: TransformerConfig) -> Block:
    width = config.hidden_size
    attn = Attention(width, config.num_heads, qk_norm=config.qk_norm, fused_attn=config.fused_attn)
    return Block(width, attn=attn, mlp=gelu_mlp(width, config.mlp_ratio))
