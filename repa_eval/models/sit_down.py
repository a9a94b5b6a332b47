"""SiT-down, the diffusion U-Net of U-REPA (arXiv 2503.18414): SiT blocks, half the resolution in the middle.

A reconstruction, not the authors' code: it meets the printed parameters and multiply-adds of all three sizes. What
these cannot tell (bias of the skips, kind of rotary positions, order of the concatenation) is our choice.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repa_eval.config import option
from repa_eval.diffusion.model import DiffusionModel, check_taps
from repa_eval.errors import UserError
from repa_eval.interfaces.architecture import Shapes, model
from repa_eval.models.shared.axial_rotary import axial_rotation, check_head_width
from repa_eval.models.shared.blocks import Block, FinalLayer, SwiGLU, close, initialise_open, teacher_heads, unpatchify
from repa_eval.models.shared.layers import Attention, LabelEmbedder, PatchEmbed, TimestepEmbedder, sincos_table
from repa_eval.models.shared.state_dict_shapes import count, projector_widths
from repa_eval.models.shared.udit_blocks import Resize, tokens_of


@dataclass(frozen=True, kw_only=True)
class SiTDownConfig:
    """Arguments of SiT-down; input_size, in_channels, num_classes and z_dims follow from data and teachers."""

    input_size: int = option(32, help="side of the latent")
    patch_size: int = option(2, help="side of a patch", least=1)
    in_channels: int = option(4, help="channels of the latent")
    hidden_size: int = option(1152, help="width of the tokens, at both resolutions", least=1)
    stages: tuple[int, ...] = option((10, 16, 10), help="blocks before, in and after the middle")
    num_heads: int = option(16, help="attention heads", least=1)
    num_classes: int = option(1000, help="class labels; the null label is num_classes")
    class_dropout_prob: float = option(0.1, help="0 builds label tables without a null label")
    z_dims: tuple[int, ...] = option((), help="widths of the teachers' features, one projector each")
    projector_dim: int = option(2048, help="hidden width of the projectors", least=1)

    @property
    def depth(self) -> int:
        """Number of blocks over the three stages."""
        return sum(self.stages)

    @property
    def mlp_width(self) -> int:
        """Hidden width of the SwiGLU: 8/3 of the tokens', rounded up to a multiple of 256."""
        return -(-8 * self.hidden_size // (3 * 256)) * 256


PRESETS = {
    "SiT-down-B/2": {"hidden_size": 768, "num_heads": 12, "stages": (5, 5, 5), "patch_size": 2},
    "SiT-down-L/2": {"hidden_size": 1024, "num_heads": 16, "stages": (9, 14, 9), "patch_size": 2},
    "SiT-down-XL/2": {"hidden_size": 1152, "num_heads": 16, "stages": (10, 16, 10), "patch_size": 2},
    # for 8x8 pixels: 4x4 tokens outside, 2x2 in the middle
    "SiT-down-digits/2": {
        "hidden_size": 64,
        "num_heads": 4,
        "stages": (2, 2, 2),
        "patch_size": 2,
        "input_size": 8,
        "in_channels": 1,
        "num_classes": 10,
        "projector_dim": 256,
    },
}


def read_sit_down(shapes: Shapes) -> dict[str, Any] | None:
    """Return the config fields that a state dict's shapes tell (all but num_heads), None if it is no SiT-down."""
    patch, positions = shapes.get("x_embedder.proj.weight"), shapes.get("pos_embed")
    labels = shapes.get("y_embedder_2.embedding_table.weight")
    if patch is None or positions is None or labels is None or "skip_linears.0.weight" not in shapes:
        return None
    return {
        "input_size": round(positions[1] ** 0.5) * patch[2],
        "patch_size": patch[2],
        "in_channels": patch[1],
        "hidden_size": patch[0],
        "stages": tuple(count(shapes, f"{stage}_blocks") for stage in ("encoder", "middle", "decoder")),
        "num_classes": labels[0] - 1,
        **projector_widths(shapes),
    }


@model("SiT-down", defaults=SiTDownConfig(), presets=PRESETS, read=read_sit_down)
class SiTDown(DiffusionModel):
    """Blocks are numbered through all stages; the projectors read MIDDLE tokens. A fresh one outputs exactly 0."""

    one_grid = False

    def __init__(self, config: SiTDownConfig) -> None:
        super().__init__()
        _check(config)
        self.config = config
        width, (before, middle, after) = config.hidden_size, config.stages
        self.x_embedder = PatchEmbed(config.input_size, config.patch_size, config.in_channels, width)
        self.pos_embed = nn.Parameter(sincos_table(width, self.grid(0)[0])[None], requires_grad=False)
        # a condition for each resolution: 1 = outer, 2 = middle
        self.t_embedder_1, self.t_embedder_2 = (TimestepEmbedder(width) for _ in range(2))
        self.y_embedder_1, self.y_embedder_2 = (
            LabelEmbedder(config.num_classes, width, config.class_dropout_prob) for _ in range(2)
        )
        self.encoder_blocks = nn.ModuleList(_block(config) for _ in range(before))
        self.down = Resize(width, width // 4, down=True)
        self.middle_blocks = nn.ModuleList(_block(config) for _ in range(middle))
        self.up = Resize(width, 4 * width, down=False)
        self.skip_linears = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(after))
        self.decoder_blocks = nn.ModuleList(_block(config) for _ in range(after))
        check_head_width(width // config.num_heads)
        self.projectors = nn.ModuleList()
        self.final_layer = FinalLayer(width, config.patch_size**2 * config.in_channels)
        self._initialise()
        self.projectors.extend(teacher_heads(config))

    @property
    def middle(self) -> range:
        """The layers at half the resolution, those that U-REPA aligns."""
        before, middle, _ = self.config.stages
        return range(before + 1, before + middle + 1)

    def grid(self, layer: int) -> tuple[int, int]:
        """Return rows and columns of a layer's tokens."""
        check_taps((layer,), self.depth)
        side = self.config.input_size // self.config.patch_size
        return (side // 2, side // 2) if layer in self.middle else (side, side)

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor, *, taps: Collection[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Return (velocity noise - data (B, C, H, W), hidden) for noisy x (B, C, H, W), t (B,), labels y (B,).

        t: 1 = noise. taps: as in SiT; hidden[layer] has N tokens outside and N/4 in the middle, row by row.
        """
        check_taps(taps, self.depth)
        hidden: dict[int, Tensor] = {}
        outer = self.t_embedder_1(t) + self.y_embedder_1(y)  # (B, D)
        inner = self.t_embedder_2(t) + self.y_embedder_2(y)
        rotate, rotate_middle = self._rotation(0, x.device), self._rotation(self.middle[0], x.device)

        def keep(layer: int, x: Tensor) -> Tensor:
            if layer in taps:
                hidden[layer] = x
            return x

        x = keep(0, self.x_embedder(x) + self.pos_embed)  # (B, N, D)
        skips = []
        for layer, block in enumerate(self.encoder_blocks, 1):
            x = keep(layer, block(x, outer, rotate))
            skips.append(x)
        x = tokens_of(self.down(_map(x)))  # (B, N/4, D)
        for layer, block in zip(self.middle, self.middle_blocks, strict=True):
            x = keep(layer, block(x, inner, rotate_middle))
        x = tokens_of(self.up(_map(x)))  # (B, N, D)
        for layer, (skip, block) in enumerate(
            zip(self.skip_linears, self.decoder_blocks, strict=True), self.middle.stop
        ):
            x = keep(layer, block(skip(torch.cat([x, skips.pop()], dim=-1)), outer, rotate))
        return unpatchify(self.final_layer(x, outer), self.config.patch_size), hidden

    def _rotation(self, layer: int, device: torch.device) -> Any:
        return axial_rotation(self.config.hidden_size // self.config.num_heads, *self.grid(layer), device)

    def _initialise(self) -> None:
        times = [layer for embedder in (self.t_embedder_1, self.t_embedder_2) for layer in embedder.mlp[::2]]
        labels = [self.y_embedder_1.embedding_table, self.y_embedder_2.embedding_table]
        initialise_open(self, (*labels, *times))
        close((*self.encoder_blocks, *self.middle_blocks, *self.decoder_blocks), self.final_layer)


def upsample_tokens(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return tokens (B, 4N, D) on a grid of twice the sides, bilinear, from tokens (B, N, D) on `grid`, row by row.

    U-REPA projects first and upsamples the projections to the teacher's grid after; the opposite is worse. The paper
    does not say how it upsamples: bilinear is our choice (nearest would make four equal tokens of one).
    """
    maps = tokens.transpose(1, 2).unflatten(2, grid)
    return tokens_of(F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False))


def _block(config: SiTDownConfig) -> Block:
    width = config.hidden_size
    return Block(width, attn=Attention(width, config.num_heads), mlp=SwiGLU(width, config.mlp_width, bias=False))


def _map(tokens: Tensor) -> Tensor:
    side = int(tokens.shape[1] ** 0.5)
    return tokens.transpose(1, 2).unflatten(2, (side, side))  # (B, D, side, side)


def _check(config: SiTDownConfig) -> None:
    if len(config.stages) != 3 or min(config.stages) < 1:
        raise UserError(f"stages {list(config.stages)}: SiT-down has three of at least one block each")
    if config.stages[0] != config.stages[2]:
        raise UserError(f"stages {list(config.stages)}: every block after the middle takes one from before it")
    if config.input_size % (2 * config.patch_size):
        raise UserError(
            f"input_size {config.input_size} is not a multiple of {2 * config.patch_size}: patches, then half as many"
        )
