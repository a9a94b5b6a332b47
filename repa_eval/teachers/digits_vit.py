"""The embedded teacher: a 252k-parameter ViT trained on digits without labels, and its untrained twin, the control.

Patch features are z-scored per channel over the training images: without it a few channels dominate every cosine.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor, nn

from repa_eval.errors import UserError
from repa_eval.interfaces.images import in_memory, load_data, to_signed
from repa_eval.interfaces.teacher import Teacher, Tokens, teacher
from repa_eval.models.encoders.conv_vit import ConvViT, ConvViTConfig
from repa_eval.runtime.hashing import digest_module
from repa_eval.weight_files.state_dicts import NOTHING, load_strictly, read_state

WEIGHTS = "digits-vit.safetensors"
RANDOM_SEED = 0


class DigitsViT(Teacher):
    """ConvViT as teacher: tokens (B, 16, 96) of 8x8 grey images, z-scored per channel."""

    def __init__(self, name: str, network: ConvViT) -> None:
        super().__init__()
        self.name = name
        self.network = network
        self.width = network.config.hidden_size
        self.digest = digest_module(network)

    def forward(self, images: Tensor) -> Tokens:
        """Return Tokens for uint8 images (B, 1, 8, 8)."""
        side, channels = self.network.config.input_size, self.network.config.in_channels
        if images.shape[1:] != (channels, side, side):
            given = "x".join(map(str, images.shape[1:]))
            raise UserError(f"teacher {self.name} reads {channels}x{side}x{side} images, not {given}")
        tokens, _ = self.network(to_signed(images))
        scaled = (tokens - self.network.feature_mean) / self.network.feature_std
        return Tokens(patches=scaled[:, 1:], cls=scaled[:, 0])

    def attentions(self) -> Sequence[nn.Module]:
        """Return the attention module of each block."""
        return [block.get_submodule("attn") for block in self.network.blocks]


@teacher("digits-vit")
def digits_vit(name: str, weights: Path | None) -> Teacher:
    """Return the self-supervised teacher; its weights ship with the package."""
    network = ConvViT(ConvViTConfig())
    path = Path(str(files("repa_eval") / "weights" / WEIGHTS)) if weights is None else weights
    owner = f"teacher {name}"
    state = read_state(path, owner=owner, names=network.state_dict())
    load_strictly(network, state, drop=NOTHING, owner=owner, path=path)
    return DigitsViT(name, network)


@teacher("digits-vit-random")
def digits_vit_random(name: str, weights: Path | None) -> Teacher:
    """Return the control: the same network with random weights, its normalisation statistics calibrated."""
    if weights is not None:
        raise UserError(f"teacher {name} has random weights by definition; leave --teacher-weights out")
    return DigitsViT(name, copy.deepcopy(_random_network()))


@functools.cache
def _random_network() -> ConvViT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        network = ConvViT(ConvViTConfig())
    network.calibrate(to_signed(torch.from_numpy(in_memory(load_data("digits", "train")).images)))
    return network
