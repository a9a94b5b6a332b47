"""Hidden states of a network that is not ours, read by hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repa_eval.errors import UserError
from repa_eval.features.call_identity import call_identity
from repa_eval.features.capture import Capture, collect
from repa_eval.features.hooks import Part, captured
from repa_eval.features.model_state import preserved
from repa_eval.interfaces.image_source import ImageSource, Samples
from repa_eval.runtime.hashing import digest_module

Array = np.ndarray[Any, Any]
Call = Callable[[Tensor, Sequence[int]], object]  # uint8 images (B, C, H, W) and their indices -> anything
# modules of torch whose four-dimensional outputs are (B, C, H, W) by definition
CHANNELS_FIRST = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.GroupNorm, nn.MaxPool2d, nn.AvgPool2d, nn.Upsample)


@torch.no_grad()
def foreign_features(
    network: nn.Module,
    images: ImageSource,
    *,
    layers: Sequence[str],
    call: Call,
    t: float | None = None,
    prefix_tokens: int = 0,
    part: Part = None,
    channels_last: bool | None = None,
    capture: Capture | None = None,
    weights_hash: str = "",
    call_id: str = "",
) -> dict[str, Array]:
    """Return {submodule: (N, D) float32} of a network that is not ours, read by hooks that are removed again.

    call: what runs the network on uint8 images (B, C, H, W) and their indices; t: the time that it uses, if any.
    Outputs are tokens (B, T, D), maps (B, C, H, W) or, with channels_last, (B, H, W, C), read row by row, or vectors
    (B, D). part: see `captured`. channels_last: None to tell it from what the module declares, or from which two sides
    are equal for square images; UserError where neither does. prefix_tokens: tokens before the patches.
    The network computes in eval mode and is left as it was. The cache finds features by weights, call and images:
    call_id names the call, where `call_identity` cannot see all that decides what it does.
    """
    capture = capture or Capture()

    def forward(samples: Samples, indices: Sequence[int], names: Sequence[str]) -> dict[str, Tensor]:
        pixels = samples.pixels
        with captured(network, names, part=part) as found:
            call(pixels, indices)
        square = pixels.shape[-1] == pixels.shape[-2]
        maps = {name: maps_channels_last(network, name, found[name], channels_last, square=square) for name in names}
        return {name: capture.pooled(tokens_of(found[name], maps[name]), prefix_tokens) for name in names}

    record = foreign_record(
        network, call, t=t, prefix_tokens=prefix_tokens, part=part, channels_last=channels_last,
        weights_hash=weights_hash, call_id=call_id,
    )  # fmt: skip
    with preserved(network):
        return collect(images, {name: 0 for name in layers}, forward, {"kind": "foreign", **record}, capture)


def foreign_record(
    network: nn.Module,
    call: Callable[..., object],
    *,
    t: float | None = None,
    prefix_tokens: int = 0,
    part: Part = None,
    channels_last: bool | None = None,
    weights_hash: str = "",
    call_id: str = "",
) -> dict[str, Any]:
    """Return what decides the hidden states of a network that is not ours, for protocols and cache keys."""
    record: dict[str, Any] = {
        "network": type(network).__name__,
        "weights_hash": weights_hash or digest_module(network),
        "call": call_id or call_identity(call, apart_from=network),
    }
    given: Mapping[str, Any] = {"t": t, "part": part, "channels_last": channels_last}
    record |= {key: value for key, value in given.items() if value is not None}
    return record | ({"prefix_tokens": prefix_tokens} if prefix_tokens else {})


def tokens_of(output: Tensor, channels_last: bool) -> Tensor:
    """Return tokens (B, T, D) of a module's output: tokens, a map read row by row, or vectors (B, D)."""
    if output.ndim == 4:
        return output.flatten(1, 2) if channels_last else output.flatten(2).transpose(1, 2)
    if output.ndim not in (2, 3):
        raise UserError(f"a submodule's output of shape {tuple(output.shape)} is neither tokens, a map nor vectors")
    return output.unsqueeze(1) if output.ndim == 2 else output


def maps_channels_last(network: nn.Module, name: str, output: Tensor, given: bool | None, *, square: bool) -> bool:
    """Return whether a four-dimensional output is (B, H, W, C); False for outputs of other dimensions.

    given: what the user says. Else the `output_fmt` (timm) of the module or of the nearest one around it decides, the
    kind of module (a convolution), or, where the images are square, which two sides are equal.
    """
    if output.ndim != 4:
        return False
    if given is not None:
        return given
    modules = dict(network.named_modules())
    names = name.split(".")
    for end in range(len(names), -1, -1):
        declared = getattr(modules[".".join(names[:end])], "output_fmt", None)
        text = str(getattr(declared, "value", declared)).upper()
        if text in ("NHWC", "NCHW"):
            return text == "NHWC"
    if isinstance(modules[name], CHANNELS_FIRST):
        return False
    _, first, middle, last = output.shape
    if square and (first == middle) != (middle == last):
        return first == middle
    shape = "x".join(map(str, output.shape))
    raise UserError(
        f"submodule {name} returns {shape}, which may be (B, C, H, W) or (B, H, W, C): say channels_last=True or False"
    )
