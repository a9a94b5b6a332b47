"""SiT as REPA trains it (arXiv 2401.08740 and 2410.06940): adaLN-zero transformer with projectors to teacher features.

Parameter names, initialisation and arithmetic are those of sihyun-yu/REPA; hidden states are returned on request.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from timm.layers import Mlp, PatchEmbed
from torch import Tensor, nn

from repa_eval.config import option
from repa_eval.errors import UserError
from repa_eval.models._registry import model
from repa_eval.models.layers import (
    Attention,
    DiffusionModel,
    LabelEmbedder,
    TimestepEmbedder,
    check_taps,
    modulate,
    projector,
    sincos_table,
    xavier,
    zero,
)


@dataclass(frozen=True, kw_only=True)
class SiTConfig:
    """Arguments of SiT; input_size, in_channels, num_classes and z_dims follow from data and teachers in training."""

    input_size: int = option(32, help="side of the latent")
    patch_size: int = option(2, help="side of a patch", least=1)
    in_channels: int = option(4, help="channels of the latent")
    hidden_size: int = option(1152, help="width of the tokens", least=1)
    depth: int = option(28, help="number of blocks", least=1)
    num_heads: int = option(16, help="attention heads", least=1)
    mlp_ratio: float = option(4.0, help="width of the MLP over width of the tokens")
    num_classes: int = option(1000, help="class labels; the null label is num_classes")
    class_dropout_prob: float = option(0.1, help="0 builds a label table without a null label")
    z_dims: tuple[int, ...] = option((), help="widths of the teachers' features, one projector each")
    projector_dim: int = option(2048, help="hidden width of the projectors", least=1)
    qk_norm: bool = option(False, help="LayerNorm of queries and keys")
    fused_attn: bool = option(True, help="torch's fused attention")


_WIDTHS = {
    "S": {"depth": 12, "hidden_size": 384, "num_heads": 6},
    "B": {"depth": 12, "hidden_size": 768, "num_heads": 12},
    "L": {"depth": 24, "hidden_size": 1024, "num_heads": 16},
    "XL": {"depth": 28, "hidden_size": 1152, "num_heads": 16},
}
PRESETS = {
    f"SiT-{size}/{patch}": {**widths, "patch_size": patch} for size, widths in _WIDTHS.items() for patch in (2, 4, 8)
}
PRESETS["SiT-digits/2"] = {"depth": 6, "hidden_size": 64, "num_heads": 4, "patch_size": 2, "projector_dim": 256}


class GELU(nn.GELU):
    """GELU by its tanh approximation, as published: the exact one moves a forward by 7e-5."""

    def __init__(self) -> None:
        super().__init__(approximate="tanh")


class Block(nn.Module):
    """adaLN-zero block: 6 chunks of the condition shift, scale and gate the attention and the MLP."""

    def __init__(self, config: SiTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, config.num_heads, qk_norm=config.qk_norm, fused_attn=config.fused_attn)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(width, int(width * config.mlp_ratio), act_layer=GELU, drop=0.0)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Return tokens (B, N, D) from tokens x (B, N, D) and condition c (B, D)."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, dim=-1)
        x = x + gate_a.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift_a, scale_a))
        return x + gate_m.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift_m, scale_m))


class FinalLayer(nn.Module):
    """Modulated norm and the linear map from tokens to patches."""

    def __init__(self, width: int, patch_values: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, patch_values)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Return patches (B, N, p*p*C) from tokens x (B, N, D) and condition c (B, D)."""
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=-1)
        patches: Tensor = self.linear(modulate(self.norm_final(x), shift, scale))
        return patches


@model("SiT", defaults=SiTConfig(), presets=PRESETS)
class SiT(DiffusionModel):
    """Scalable interpolant transformer; a fresh one outputs exactly 0."""

    def __init__(self, config: SiTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        if config.input_size % config.patch_size:
            raise UserError(f"patch_size {config.patch_size} does not divide the latent's side {config.input_size}")
        self.x_embedder = PatchEmbed(config.input_size, config.patch_size, config.in_channels, width, bias=True)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelEmbedder(config.num_classes, width, config.class_dropout_prob)
        side = config.input_size // config.patch_size
        # a parameter without gradient, as published: it is in the state_dict and the EMA averages it
        self.pos_embed = nn.Parameter(sincos_table(width, side)[None], requires_grad=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.projectors = nn.ModuleList()
        self.final_layer = FinalLayer(width, config.patch_size**2 * config.in_channels)
        self._initialise()
        # made last: from one seed, models with and without teachers start with the same weights elsewhere
        self.projectors.extend(projector(width, config.projector_dim, z) for z in config.z_dims)
        for module in self.projectors.modules():
            if isinstance(module, nn.Linear):
                xavier(module)

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor, *, taps: Collection[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Return (velocity (B, C, H, W), {layer: hidden (B, N, D)}) for noisy x (B, C, H, W), t (B,), labels y (B,).

        taps: numbers of the blocks whose OUTPUT is wanted, 1-based; 0 = tokens after patch and position embedding.
        """
        check_taps(taps, len(self.blocks))
        hidden: dict[int, Tensor] = {}
        x = self.x_embedder(x) + self.pos_embed  # (B, N, D)
        if 0 in taps:
            hidden[0] = x
        c = self.t_embedder(t) + self.y_embedder(y)  # (B, D)
        for layer, block in enumerate(self.blocks, 1):
            x = block(x, c)
            if layer in taps:
                hidden[layer] = x
        return self.unpatchify(self.final_layer(x, c)), hidden

    def unpatchify(self, patches: Tensor) -> Tensor:
        """Return (B, C, H, W) from patches (B, N, p*p*C)."""
        batch, tokens, _ = patches.shape
        p, channels, side = self.config.patch_size, self.config.in_channels, int(tokens**0.5)
        grid = patches.reshape(batch, side, side, p, p, channels)
        return grid.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, side * p, side * p)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                xavier(module)
        patch = self.x_embedder.proj.weight
        nn.init.xavier_uniform_(patch.data.view(patch.shape[0], -1))  # as a matrix
        zero(self.x_embedder.proj, only="bias")
        embedders = (self.y_embedder.embedding_table, self.t_embedder.mlp[0], self.t_embedder.mlp[2])
        for weight in (dict(embedder.named_parameters())["weight"] for embedder in embedders):
            nn.init.normal_(weight, std=0.02)
        final = self.final_layer
        for linear in (
            *(block.get_submodule("adaLN_modulation.1") for block in self.blocks),
            final.adaLN_modulation[-1],
            final.linear,
        ):
            zero(linear)
