"""The contract of a diffusion model of ours."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.errors import UserError


class DiffusionModel(nn.Module):
    """What every diffusion model of ours has, beside `forward(x, t, y, *, taps) -> (output, {layer: hidden})`.

    config: its arguments (depth, in_channels, input_size, num_classes, ...). projectors: heads to teacher features.
    prefix_tokens: how many tokens stand before the patches in every hidden state (REG: its class token).
    native: the network's own time and target; noising: how its x_t is made (both are entries of the protocol).
    """

    config: Any
    projectors: nn.ModuleList
    prefix_tokens: int = 0
    native: str = "t=1 noise, v = noise - data"
    noising: str = "interpolant"

    @property
    def depth(self) -> int:
        """Number of blocks, the largest layer that can be tapped."""
        return int(self.config.depth)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what is denoised."""
        return shape_of(self.config)

    @property
    def null_label(self) -> int:
        """The label that means "no class"."""
        return int(self.config.num_classes)

    def noised(self, x: Tensor, noise: Tensor, t: Tensor, interpolant: Interpolant) -> Tensor:
        """Return x_t (B, C, H, W) of clean x, noise and t (B,), as the model must be given it."""
        return interpolant.mix(x, noise, t)

    def class_token(self, tokens: Tensor) -> Tensor:
        """Return what is noised (B, z) of a teacher's clean class tokens (B, S), where the model reads one."""
        return tokens

    def encode(self, images: Tensor) -> Tensor:
        """Return what is noised (B, C, h, w) of images (B, 1 or 3, H, W) in [-1, 1]; by default the images."""
        return images

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B, 1 or 3, H, W) near [-1, 1] of what is generated (B, C, h, w); by default the same."""
        return latents

    def record(self) -> dict[str, Any]:
        """Return the protocol entries that say how a network of somebody else's is called; none for ours."""
        return {}

    def null_condition(self, count: int) -> Tensor:
        """Return what `forward` takes as y for `count` images of no class, on the model's device."""
        return torch.full((count,), self.null_label, device=next(self.parameters()).device)


def shape_of(config: Any) -> tuple[int, int, int]:
    """Return channels, height and width of what a network of this config denoises; most are square."""
    height, width = getattr(config, "input_shape", ()) or (config.input_size, config.input_size)
    return config.in_channels, height, width


def check_taps(taps: Collection[int], depth: int) -> None:
    """UserError unless every layer in `taps` exists in a model of `depth` blocks."""
    for layer in taps:
        if not 0 <= layer <= depth:
            raise UserError(f"layer {layer}: this model has blocks 1..{depth}")
