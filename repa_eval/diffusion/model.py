"""The contract of a diffusion model of ours, and what samplers, methods and commands may ask it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.errors import UserError

Conditioning = Literal["class", "snippet", "text"]
NO_NULL_LABEL = 'this model has no null label (class_dropout_prob 0): no label of it means "no class"'


class DiffusionModel(nn.Module):
    """What every diffusion model has, besides `forward(x, t, y, *, taps) -> (output, {layer: hidden})`.

    config: its arguments (depth, in_channels, input_size, num_classes, ...). projectors: heads to teacher features.
    prefix_tokens: number of tokens before the patches in every hidden state (class token, registers).
    native: the network's own time and target; noising: how its x_t is made (both are entries of the protocol).

    Its abilities, which are asked for instead of its class:
    conditioning: what `y` holds: "class", labels (B,); "snippet", rows (B, D) of a memory bank; "text", numbers (B,) of
    captions or text tokens (B, L, D).
    has_class_token: `forward` takes `cls_token` (B, z), a teacher's class token that is denoised with the latent, and
    answers both velocities.
    times: 1; or 2 for a model of the mean velocity between t and a second time: `forward` takes `r` (B,), by default t.
    one_grid: the hidden states of all layers have one number of tokens and one width; a U-Net's have not.
    averaged_buffers: last parts of the names of buffers that an average of the weights also averages.
    decodes: whether `decode` makes images of latents, so that no VAE needs to be named.
    layer_names: the submodule behind each layer number, 1-based, for a network of somebody else's; none for ours.
    """

    config: Any
    projectors: nn.ModuleList
    prefix_tokens: int = 0
    native: str = "t=1 noise, v = noise - data"
    noising: str = "interpolant"
    conditioning: Conditioning = "class"
    has_class_token: bool = False
    times: Literal[1, 2] = 1
    one_grid: bool = True
    averaged_buffers: frozenset[str] = frozenset()
    decodes: bool = False
    layer_names: tuple[str, ...] = ()

    @property
    def depth(self) -> int:
        """Number of blocks, the largest layer that can be tapped."""
        return depth_of(self.config)

    def width(self, layer: int) -> int:
        """Return the width D of a layer's hidden states (B, N, D)."""
        return int(self.config.hidden_size)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what is denoised."""
        return self.config.in_channels, self.config.input_size, self.config.input_size

    @property
    def num_classes(self) -> int:
        """Number of labels (or captions) that `y` may name, 0 where it names none."""
        return int(self.config.num_classes)

    @property
    def has_null_label(self) -> bool:
        """Whether a label means "no class": False for a label table that was trained without dropping labels."""
        return self.conditioning != "class" or has_null_row(self.config)

    @property
    def null_label(self) -> int:
        """The label that means "no class", where `has_null_label`."""
        return self.num_classes

    @property
    def reads_captions(self) -> bool:
        """Whether it must be given features of each image's caption, since its null condition is not known."""
        return False

    @property
    def condition_width(self) -> int:
        """Width of a snippet where `conditioning` is "snippet", else 0."""
        return 0

    @property
    def class_token_width(self) -> int:
        """Width z of the class token that `forward` takes, 0 where it takes none."""
        return 0

    @property
    def snippet_memory(self) -> Any:
        """The memory bank that is stored with the weights, None without one."""
        return None

    @property
    def has_soft_tokens(self) -> bool:
        """Whether soft tokens have been put before the text."""
        return False

    @property
    def stub(self) -> str:
        """What the network is, and why it generates nothing; "" where it generates images."""
        return ""

    def noised(self, x: Tensor, noise: Tensor, t: Tensor, interpolant: Interpolant) -> Tensor:
        """Return x_t (B, C, H, W) of clean x, noise and t (B,), as the model must be given it."""
        return interpolant.mix(x, noise, t)

    def class_token(self, tokens: Tensor) -> Tensor:
        """Return what is noised (B, z) of a teacher's clean class tokens (B, S), where `has_class_token`."""
        return tokens

    def encode(self, images: Tensor) -> Tensor:
        """Return what is noised (B, *image_shape) of images (B, 1 or 3, H, W) in [-1, 1]; by default the images.

        images: float32, on the model's device. In training gradients flow through it: a frozen encoder stops them.
        """
        return images

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B, 1 or 3, H, W) near [-1, 1] of latents (B, *image_shape); called where `decodes`."""
        return latents

    def record(self) -> dict[str, Any]:
        """Return the protocol entries that say how a network of somebody else's is called; none for ours."""
        return {}

    def null_condition(self, count: int) -> Tensor:
        """Return what `forward` takes as y for `count` images of no class, on the model's device.

        UserError where the model has no null label.
        """
        if not self.has_null_label:
            raise UserError(NO_NULL_LABEL)
        return torch.full((count,), self.null_label, device=next(self.parameters()).device)


def has_null_row(config: Any) -> bool:
    """Return whether the label table of a network of this config has a last row for "no class"."""
    return bool(vars(config).get("class_dropout_prob", 1.0) > 0)


def depth_of(config: Any) -> int:
    """Return the number of blocks of a network of this config; a U-Net's config counts them stage by stage."""
    depth: int | Sequence[int] = config.depth
    return depth if isinstance(depth, int) else sum(depth)


def check_taps(taps: Collection[int], depth: int) -> None:
    """UserError unless every layer in `taps` exists in a model of `depth` blocks."""
    for layer in taps:
        if not 0 <= layer <= depth:
            raise UserError(f"layer {layer}: this model has blocks 1..{depth}")
