"""A foreign diffusion network as one of this package's models."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repa_eval.diffusion.layers import fits_pattern
from repa_eval.diffusion.model import DiffusionModel, check_taps
from repa_eval.errors import UserError
from repa_eval.features.call_identity import call_identity
from repa_eval.features.foreign import maps_channels_last, tokens_of
from repa_eval.features.hooks import Part, captured
from repa_eval.features.model_state import unwrapped

# (network, x (B, C, H, W), t (B,) with 1 = noise, y (B,) labels or None) -> velocity noise - data (B, C, H, W)
Velocity = Callable[[Any, Tensor, Tensor, Tensor | None], Tensor]
Images = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class WrappedConfig:
    """The sizes of a wrapped network, under the names that our models have."""

    depth: int
    in_channels: int
    input_size: int
    input_shape: tuple[int, int]
    num_classes: int


class WrappedModel(DiffusionModel):
    """A network of somebody else's behind our convention: t = 1 is noise, the output is the velocity noise - data.

    network: as it was given. layer_names: the submodule behind each layer number, 1-based.
    """

    network: nn.Module

    def __init__(
        self,
        network: nn.Module,
        *,
        layer_names: Sequence[str],
        run: Velocity,
        image_shape: tuple[int, int, int],
        num_classes: int | None,
        encode: Images | None,
        decode: Images | None,
        how: Mapping[str, Any],
        call_id: str,
    ) -> None:
        super().__init__()
        self.network = network
        self.projectors = nn.ModuleList()
        self.layer_names = tuple(layer_names)
        channels, height, width = image_shape
        # a network without classes draws one label for all, which it is not shown
        self.config = WrappedConfig(len(layer_names), channels, height, (height, width), num_classes or 1)
        self._run, self._encode, self._decode = run, encode, decode
        self._labelled, self._how, self._call_id = num_classes is not None, dict(how), call_id
        self.decodes = decode is not None
        self.training = network.training

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what is denoised."""
        return self.config.in_channels, *self.config.input_shape

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor | None = None, *, taps: Collection[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Return (velocity (B, C, H, W), {layer: tokens (B, T, D)}) of x (B, C, H, W) at t (B,)."""
        check_taps(taps, self.depth)
        if 0 in taps:
            raise UserError("layer 0: a wrapped network has the layers that `layers` names, from 1")
        names = {layer: self.layer_names[layer - 1] for layer in taps}
        found: dict[str, Tensor] = {}
        with ExitStack() as stack:
            if names:
                found = stack.enter_context(captured(self.network, list(names.values()), part=self._how.get("part")))
            velocity = self._run(self.network, x, t, y if self._labelled else None)
        if not isinstance(velocity, Tensor) or velocity.shape != x.shape:
            shape = tuple(velocity.shape) if isinstance(velocity, Tensor) else type(velocity).__name__
            raise UserError(f"run returns {shape}; needed is the velocity, of the shape {tuple(x.shape)} of x")
        return velocity, {layer: self._tokens(name, found[name]) for layer, name in names.items()}

    def _tokens(self, name: str, output: Tensor) -> Tensor:
        square = self.config.input_shape[0] == self.config.input_shape[1]
        last = maps_channels_last(self.network, name, output, self._how.get("channels_last"), square=square)
        return tokens_of(output, last)[:, self._how.get("prefix_tokens", 0) :]

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return the latents of images in [-1, 1], by the encoder that was given."""
        if self._encode is None:
            return images
        return self._encode(images.to(next(self.parameters()).device)).float().cpu()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images near [-1, 1] of latents, by the decoder that was given."""
        return latents if self._decode is None else self._decode(latents.to(next(self.parameters())))

    def record(self) -> dict[str, Any]:
        """Return the protocol entries: whose network it is, how it is called, and what is read of it."""
        coded = {"encode": self._encode, "decode": self._decode}
        return {
            "network": type(self.network).__name__,
            "call": self._call_id or call_identity(self._run, apart_from=self.network),
            "layer_names": list(self.layer_names),
            **{key: call_identity(call, apart_from=self.network) for key, call in coded.items() if call is not None},
            **self._how,
        }


def wrap(
    network: nn.Module,
    *,
    layers: str | Sequence[str],
    run: Velocity,
    image_shape: tuple[int, int, int],
    num_classes: int | None = None,
    encode: Images | None = None,
    decode: Images | None = None,
    part: Part = None,
    channels_last: bool | None = None,
    prefix_tokens: int = 0,
    call_id: str = "",
) -> WrappedModel:
    """Turn a foreign diffusion network into a model that align, features, probe, Monitor, sample and report take.

    layers: submodules, in the order of their numbers 1, 2, ...: names, or patterns in which * stands for one part of a
    name ("transformer_blocks.*"). run: (network, x (B, C, H, W), t (B,), y) -> the velocity noise - data at t, 1 =
    noise; y are labels (B,) where num_classes says how many there are (num_classes itself means "no class"), else None.
    image_shape: (C, H, W) of x. encode, decode: between images in [-1, 1] and x, where x are latents; they make the
    shift and scale that the network was trained with.
    part: which entry of a tuple (index) or dict (key) a layer returns: 1 for the blocks of SD3 and Flux, which return
    text and image tokens. channels_last: whether maps are (B, H, W, C); None to tell it, or to refuse. prefix_tokens:
    tokens before the patches, which are left out. call_id: names the call in protocol and cache, where the code of
    `run` does not tell all. The weights are shared: what trains the network is seen by the wrapped model.
    """
    inner = unwrapped(network)
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise UserError(f"image_shape {tuple(image_shape)}: give channels, height and width of what is denoised")
    if num_classes is not None and num_classes < 1:
        raise UserError(f"num_classes {num_classes}: give 1 or more, or leave it out for a network without classes")
    how = {"part": part, "channels_last": channels_last, "prefix_tokens": prefix_tokens or None}
    return WrappedModel(
        inner,
        layer_names=submodules(inner, [layers] if isinstance(layers, str) else layers),
        run=run,
        image_shape=image_shape,
        num_classes=num_classes,
        encode=encode,
        decode=decode,
        how={key: value for key, value in how.items() if value is not None},
        call_id=call_id,
    )


def submodules(network: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Return the submodules that names and patterns mean, in the order of the network; UserError if one fits none."""
    known = [name for name, _ in network.named_modules() if name]
    found: list[str] = []
    for pattern in patterns:
        fits = [name for name in known if fits_pattern(name, pattern)]
        if not fits:
            near = ", ".join(list(dict.fromkeys(name.split(".")[0] for name in known))[:8])
            raise UserError(f"layers {pattern!r} fits no submodule of {type(network).__name__} (it has: {near})")
        found += [name for name in fits if name not in found]
    return found
