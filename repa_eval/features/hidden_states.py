"""Hidden states of a diffusion model for noised images, per layer and time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repa_eval.config import to_dict
from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.diffusion.model import DiffusionModel
from repa_eval.errors import UserError
from repa_eval.features.capture import Capture, ClassTokens, collect
from repa_eval.interfaces.images import ImageSource, to_signed
from repa_eval.runtime.hashing import digest_module
from repa_eval.runtime.seeding import generators, normal

Array = np.ndarray[Any, Any]


@torch.no_grad()
def hidden_features(
    model: DiffusionModel,
    images: ImageSource,
    *,
    layers: Sequence[int],
    t: float,
    capture: Capture | None = None,
    weights_hash: str = "",
) -> dict[int, Array]:
    """Return {layer: (N, D) float32} of the hidden states of noised images, all layers in one forward.

    t: time in [0, 1], 1 = noise. The noise of image i depends on (seed, stream, i) alone: the same for every layer,
    time and checkpoint. The label is the null label: the class must not leak into the features (REPA
    issues 24, 32). weights_hash: of the model, computed here if `capture` has a cache and none is given. The model
    is put into eval mode and stays there (`model_state.preserved` brings its own mode back).
    """
    if not 0.0 <= t <= 1.0:
        raise UserError(f"timestep {t} is outside [0, 1] (0 = data, 1 = noise)")
    capture = capture or Capture()
    if capture.cache is not None:
        weights_hash = weights_hash or digest_module(model)
    model.eval()

    def forward(pixels: Tensor, indices: Sequence[int], names: Sequence[str]) -> dict[str, Tensor]:
        wanted = {name: int(name.removeprefix("layer")) for name in names}
        inputs = noised(
            model,
            pixels,
            indices,
            t=t,
            interpolant=capture.interpolant,
            seed=capture.seed,
            stream=capture.stream,
            class_tokens=capture.class_tokens,
        )
        _, hidden = model(**inputs, taps=tuple(wanted.values()))
        return {name: capture.pooled(hidden[layer], model.prefix_tokens) for name, layer in wanted.items()}

    record = {
        "kind": "hidden states",
        "weights": weights_hash,
        "t": float(t),
        "path": to_dict(capture.interpolant),
        "dtype": str(next(model.parameters()).dtype),
        **model_record(model),
    }
    found = collect(images, {f"layer{layer}": layer for layer in layers}, forward, record, capture)
    return {layer: found[f"layer{layer}"] for layer in layers}


def noised(
    model: DiffusionModel,
    pixels: Tensor,
    indices: Sequence[int],
    *,
    t: float,
    interpolant: Interpolant,
    seed: int,
    stream: str,
    class_tokens: ClassTokens | None = None,
) -> dict[str, Tensor]:
    """Return what the model is given for images uint8 (B, C, H, W): x (noised), t (B,), y (null), on its device.

    And cls_token (B, z), noised at the same t, where the model has one; UserError if `class_tokens` is missing then.
    """
    like = next(model.parameters())
    x = model.encode(to_signed(pixels))
    noise = normal(generators(seed, stream, indices), x.shape[1:])
    times = torch.full((len(x),), t)
    expected = model.image_shape
    if x.shape[1:] != expected:
        given, wanted = ("x".join(map(str, shape)) for shape in (x.shape[1:], expected))
        raise UserError(f"the images are {given} (channels x height x width); this model reads {wanted}")
    x_t = model.noised(x, noise, times, interpolant).to(like)
    inputs = {"x": x_t, "t": times.to(like.device), "y": model.null_condition(len(x))}
    if model.has_class_token:
        if class_tokens is None:
            raise UserError("this model reads a class token beside the image: name the teacher that it is from")
        clean = model.class_token(class_tokens(pixels)).float().cpu()
        own = normal(generators(seed, f"{stream} class", indices), clean.shape[1:])
        inputs["cls_token"] = interpolant.mix(clean, own, times).to(like)
    return inputs


def model_record(model: DiffusionModel | type[DiffusionModel]) -> dict[str, Any]:
    """Return the protocol entries of a model (or its class): another convention, a class token, a wrapped network."""
    record: dict[str, Any] = model.record() if isinstance(model, DiffusionModel) else {}
    if model.native != DiffusionModel.native:
        record["native_convention"] = model.native
    if model.noising != DiffusionModel.noising:
        record["noising"] = model.noising
    if model.has_class_token:
        record["class_token"] = "the teacher's, noised at the same t"
    return record
