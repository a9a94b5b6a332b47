"""U-DiT (arXiv 2405.02730): a diffusion U-Net of transformer blocks whose attention runs on downsampled tokens.

Parameter names and arithmetic are those of YuchuanTian/U-DiT. It predicts the noise at an integer step of 1000.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repa_eval.config import option
from repa_eval.diffusion.conventions import EPSILON
from repa_eval.diffusion.model import DiffusionModel, check_taps
from repa_eval.errors import UserError
from repa_eval.interfaces.architecture import Shapes, model
from repa_eval.models.shared.layers import LabelEmbedder, TimestepEmbedder, xavier, zero
from repa_eval.models.shared.state_dict_shapes import count
from repa_eval.models.shared.udit_blocks import MapFinalLayer, Resize, UDiTBlock, conv, tokens_of

STAGES = ("encoder_level_1", "encoder_level_2", "latent", "decoder_level_2", "decoder_level_1")
LEVELS = (0, 1, 2, 1, 0)  # of each stage: how often the map was halved
WIDTHS = (1, 2, 4, 2, 2)  # of each stage: its channels over hidden_size
# the condition that a stage takes: the last one is as wide as level 2, since no convolution halves its channels
CONDITIONS = (1, 2, 3, 2, 2)
# choices that are not words
BIT: Any = (0, 1)
COSINE: Any = ("v2", None)
ROPE: Any = ("rope2d", None)


@dataclass(frozen=True, kw_only=True)
class UDiTConfig:
    """Arguments of U-DiT, by their published names."""

    input_size: int = option(32, help="side of the latent")
    in_channels: int = option(4, help="channels of the latent")
    hidden_size: int = option(192, help="channels of the first stage; the others have 2, 4, 2 and 2 times as many")
    depth: tuple[int, ...] = option((2, 5, 8, 5, 2), help="blocks of the five stages")
    num_heads: int = option(8, help="attention heads, in every stage", least=1)
    mlp_ratio: float = option(2.0, help="channels of the feed-forward over channels of the map")
    num_classes: int = option(1000, help="class labels; the null label is num_classes")
    class_dropout_prob: float = option(0.1, help="0 builds label tables without a null label")
    learn_sigma: bool = option(True, help="twice the output channels: noise, then variance")
    down_factor: int = option(2, help="side of the square of sub-grids that an attention is cut into", least=1)
    ffn_type: str = option("rep", help="feed-forward: branches, or two convolutions", choices=("rep", "basic"))
    rep: int = option(1, help="1 with ffn_type rep, else without effect", choices=BIT)
    attn_type: str | None = option("v2", help="v2: cosine attention; null: scaled dot products", choices=COSINE)
    posemb_type: str | None = option("rope2d", help="rotary positions, or null", choices=ROPE)
    downsampler: str = option("dwconv5", help="convolution before the sub-grids", choices=("dwconv3", "dwconv5"))
    down_shortcut: int = option(1, help="1 adds its input to that convolution's output", choices=BIT)
    # the published network has no projectors: a method that aligns it keeps them beside the model
    z_dims: tuple[int, ...] = option((), help="widths of the teachers' features")
    projector_dim: int = option(2048, help="hidden width of a method's projectors", least=1)


PRESETS = {
    "U-DiT-S": {"hidden_size": 96, "num_heads": 4},
    "U-DiT-B": {"hidden_size": 192, "num_heads": 8},
    "U-DiT-L": {"hidden_size": 384, "num_heads": 16},
}


def read_udit(shapes: Shapes) -> dict[str, Any] | None:
    """Return the config fields that a state dict's shapes tell, None if it is no U-DiT.

    Not told: input_size, down_factor, posemb_type, down_shortcut; num_heads where attn_type is null.
    """
    patch, block = shapes.get("x_embedder.proj.weight"), "encoder_level_1.0"
    kernel = shapes.get(f"{block}.attn1.downsampler.layer.weight")
    if patch is None or kernel is None or "reduce_chan_level1.weight" not in shapes:
        return None
    branched = f"{block}.mlp1.project_in.1.weight" in shapes
    hidden = shapes[f"{block}.mlp1.project_in.1.weight" if branched else f"{block}.mlp1.fc1.weight"][0]
    heads = shapes.get(f"{block}.attn1.logit_scale")
    return {
        "in_channels": patch[1],
        "hidden_size": patch[0],
        "depth": tuple(count(shapes, stage) for stage in STAGES),
        **({"num_heads": heads[0]} if heads else {}),
        "mlp_ratio": hidden / patch[0],
        "num_classes": shapes["y_embedder_1.embedding_table.weight"][0] - 1,
        "learn_sigma": shapes["final_layer.out_proj.weight"][0] == 2 * patch[1],
        "ffn_type": "rep" if branched else "basic",
        "rep": int(branched),
        "attn_type": "v2" if heads else None,
        "downsampler": f"dwconv{kernel[-1]}",
    }


@model("U-DiT", defaults=UDiTConfig(), presets=PRESETS, read=read_udit)
class UDiT(DiffusionModel):
    """U-Net of five stages at three resolutions; its blocks are numbered over all stages in the order of the forward.

    A fresh one outputs exactly 0, by DiT's initialisation.
    """

    native = EPSILON
    one_grid = False

    def __init__(self, config: UDiTConfig) -> None:
        super().__init__()
        _check(config)
        self.config = config
        self.projectors = nn.ModuleList()
        width = config.hidden_size
        self.x_embedder = nn.ModuleDict({"proj": conv(config.in_channels, width, 3)})
        for k, channels in enumerate((width, 2 * width, 4 * width), 1):
            self.add_module(f"t_embedder_{k}", TimestepEmbedder(channels))
            self.add_module(f"y_embedder_{k}", LabelEmbedder(config.num_classes, channels, config.class_dropout_prob))
        for stage, times, blocks in zip(STAGES, WIDTHS, config.depth, strict=True):
            self.add_module(stage, nn.ModuleList(_block(config, times * width) for _ in range(blocks)))
        self.down1_2, self.down2_3 = (Resize(channels, channels // 2, down=True) for channels in (width, 2 * width))
        self.up3_2, self.up2_1 = (Resize(channels, 2 * channels, down=False) for channels in (4 * width, 2 * width))
        self.reduce_chan_level2 = conv(4 * width, 2 * width, 1)
        self.reduce_chan_level1 = conv(2 * width, 2 * width, 1)
        self.output = conv(2 * width, 2 * width, 3)
        self.final_layer = MapFinalLayer(2 * width, config.in_channels * (2 if config.learn_sigma else 1))
        self._initialise()

    def stage(self, layer: int) -> int:
        """Return the number 0..4 of the stage that a layer belongs to; layer 0 belongs to the first."""
        check_taps((layer,), self.depth)
        ends = [sum(self.config.depth[: k + 1]) for k in range(len(STAGES))]
        return next(k for k, end in enumerate(ends) if layer <= end)

    def width(self, layer: int) -> int:
        """Return the width D of a layer's tokens."""
        return WIDTHS[self.stage(layer)] * self.config.hidden_size

    def grid(self, layer: int) -> tuple[int, int]:
        """Return rows and columns of the map whose pixels are the tokens of a layer."""
        side = self.config.input_size >> LEVELS[self.stage(layer)]
        return side, side

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor, *, taps: Collection[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Return (noise and variance (B, 2C, H, W), hidden) for noisy x (B, C, H, W), steps t (B,), labels y (B,).

        t: 0..999, 999 = noise. taps: layers whose output is wanted; hidden[layer] (B, H*W, D) of that layer's map.
        """
        check_taps(taps, self.depth)
        _check_side("the input's side", (x.shape[-2], x.shape[-1]), self.config.down_factor)
        hidden: dict[int, Tensor] = {}
        conditions = [
            self.get_submodule(f"t_embedder_{k}")(t) + self.get_submodule(f"y_embedder_{k}")(y) for k in (1, 2, 3)
        ]

        def run(stage: int, x: Tensor) -> Tensor:
            first = 1 + sum(self.config.depth[:stage])
            blocks: Any = self.get_submodule(STAGES[stage])
            for layer, block in enumerate(blocks, first):
                x = block(x, conditions[CONDITIONS[stage] - 1])
                if layer in taps:
                    hidden[layer] = tokens_of(x)
            return x

        x = self.x_embedder["proj"](x)  # (B, D, H, W)
        if 0 in taps:
            hidden[0] = tokens_of(x)
        outer = run(0, x)
        inner = run(1, self.down1_2(outer))  # (B, 2D, H/2, W/2)
        x = run(2, self.down2_3(inner))  # (B, 4D, H/4, W/4)
        x = run(3, self.reduce_chan_level2(torch.cat([self.up3_2(x), inner], dim=1)))
        x = run(4, self.reduce_chan_level1(torch.cat([self.up2_1(x), outer], dim=1)))  # (B, 2D, H, W)
        return self.final_layer(self.output(x), conditions[1]), hidden

    def merged(self) -> UDiT:
        """Return a copy that shares no tensor, with every feed-forward of branches as three convolutions.

        The same function, cheaper, for use only: its parameters have no published names. Merging it again changes
        nothing.
        """
        copied = copy.deepcopy(self)
        for block in copied.all_blocks():
            block.merge()
        return copied

    def all_blocks(self) -> Iterator[UDiTBlock]:
        """Yield the blocks in the order of their layers."""
        for stage in STAGES:
            yield from self.get_submodule(stage)  # type: ignore[misc]

    def _initialise(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                if "adaLN_modulation" in name:
                    zero(module)
                else:
                    xavier(module)
        for k in (1, 2, 3):
            times: Any = self.get_submodule(f"t_embedder_{k}.mlp")
            labels: Any = self.get_submodule(f"y_embedder_{k}.embedding_table")
            for layer in (labels, times[0], times[2]):
                nn.init.normal_(layer.weight, std=0.02)
        zero(self.final_layer.out_proj)


def _block(config: UDiTConfig, width: int) -> UDiTBlock:
    return UDiTBlock(
        width,
        config.num_heads,
        mlp_ratio=config.mlp_ratio,
        branched=config.ffn_type == "rep",
        down_factor=config.down_factor,
        side=int(config.downsampler.removeprefix("dwconv")),
        shortcut=bool(config.down_shortcut),
        cosine=config.attn_type == "v2",
        rope=config.posemb_type == "rope2d",
    )


def _check(config: UDiTConfig) -> None:
    if len(config.depth) != len(STAGES) or min(config.depth) < 1:
        raise UserError(f"depth {list(config.depth)}: U-DiT has {len(STAGES)} stages of at least one block each")
    if config.ffn_type == "rep" and config.rep != 1:
        raise UserError(f"rep {config.rep}: ffn_type rep has its branches, rep=1; choose ffn_type basic for none")
    _check_side("input_size", (config.input_size,), config.down_factor)


def _check_side(what: str, sides: tuple[int, ...], down_factor: int) -> None:
    """UserError unless the map can be halved twice and still be cut into sub-grids."""
    unit = 4 * down_factor
    for side in sides:
        if side % unit:
            raise UserError(
                f"{what} {side} is not a multiple of {unit}: two halvings, then {down_factor} sub-grids a side"
            )
