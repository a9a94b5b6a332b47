"""Features of paired images: hidden states of a diffusion model per layer and time, and a teacher's patch tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repa_eval.cache import Entry
from repa_eval.config import to_dict
from repa_eval.data._registry import ImageSource, to_signed
from repa_eval.errors import UserError
from repa_eval.hooks import captured
from repa_eval.interpolant import Interpolant
from repa_eval.models.layers import DiffusionModel, shape_of
from repa_eval.seeding import generators, normal
from repa_eval.shares import Share
from repa_eval.teachers._registry import Teacher

Array = np.ndarray[Any, Any]
ClassTokens = Callable[[Tensor], Tensor]  # uint8 images (B, C, H, W) -> clean class tokens (B, z)
POOLINGS = {"mean": "token mean", "cls": "class token", "none": "no pooling"}


@dataclass(frozen=True, kw_only=True)
class Capture:
    """How features are taken: everything that decides their values, and where they are kept meanwhile.

    pool: "mean" over the patch tokens, "cls" the class token, "none" all patch tokens. class_tokens: what gives a model
    with a class token (REG) the clean one of an image; it is noised at the same t. cache: a folder in which features
    outlive an interruption. share: this process's part of the images, which several need a cache for.
    progress: called after each batch of images.
    """

    interpolant: Interpolant = field(default_factory=Interpolant)
    seed: int = 0
    stream: str = "align"
    pool: str = "mean"
    class_tokens: ClassTokens | None = None
    batch_size: int = 256
    cache: Path | None = None
    share: Share = field(default_factory=Share)
    progress: Callable[[], object] | None = None

    def __post_init__(self) -> None:
        if self.pool not in POOLINGS:
            raise UserError(f"pooling {self.pool!r}: choose {', '.join(POOLINGS)}")

    def pooled(self, tokens: Tensor, prefix_tokens: int) -> Tensor:
        """Return (B, D), or (B, T, D) without pooling, of tokens (B, prefix + T, D), float32 on the CPU."""
        if self.pool == "cls":
            if not prefix_tokens:
                raise UserError("these hidden states have no class token; pool them by mean")
            return tokens[:, 0].float().cpu()
        patches = tokens[:, prefix_tokens:].float()
        return (patches.mean(1) if self.pool == "mean" else patches).cpu()


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
    issues 24, 32). weights_hash: of the model, needed where `capture` has a cache.
    """
    if not 0.0 <= t <= 1.0:
        raise UserError(f"timestep {t} is outside [0, 1] (0 = data, 1 = noise)")
    capture = capture or Capture()
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
    found = _collect(images, {f"layer{layer}": layer for layer in layers}, forward, record, capture)
    return {layer: found[f"layer{layer}"] for layer in layers}


@torch.no_grad()
def teacher_features(teacher: Teacher, images: ImageSource, *, capture: Capture | None = None) -> Array:
    """Return (N, D) float32: token means of the teacher's patch features of clean images (see Capture for others)."""
    device = next(teacher.parameters()).device
    capture = capture or Capture()

    def forward(pixels: Tensor, indices: Sequence[int], names: Sequence[str]) -> dict[str, Tensor]:
        tokens = teacher(pixels.to(device))
        if capture.pool == "cls":
            if tokens.cls is None:
                raise UserError(f"teacher {teacher.name} has no class token; pool it by mean")
            return {"teacher": tokens.cls.float().cpu()}
        return {"teacher": capture.pooled(tokens.patches, 0)}

    record = {"kind": "teacher", "teacher": teacher.name, "weights": teacher.digest}
    still = replace(capture, seed=0, stream="")  # clean images have no noise
    return _collect(images, {"teacher": 0}, forward, record, still)["teacher"]


@torch.no_grad()
def foreign_features(
    network: nn.Module,
    images: ImageSource,
    *,
    layers: Sequence[str],
    call: Callable[[Tensor, Sequence[int]], object],
    prefix_tokens: int = 0,
    capture: Capture | None = None,
    weights_hash: str = "",
) -> dict[str, Array]:
    """Return {submodule: (N, D) float32} of a network that is not ours, read by hooks that are removed again.

    call: what runs the network on uint8 images (B, C, H, W) and their indices. Outputs are tokens (B, T, D), maps
    (B, C, H, W), read row by row, or vectors (B, D). prefix_tokens: tokens before the patches.
    """
    capture = capture or Capture()

    def forward(pixels: Tensor, indices: Sequence[int], names: Sequence[str]) -> dict[str, Tensor]:
        with captured(network, names) as found:
            call(pixels, indices)
        return {name: capture.pooled(_tokens(found[name]), prefix_tokens) for name in names}

    record = {"kind": "foreign", "weights": weights_hash}
    return _collect(images, {name: 0 for name in layers}, forward, record, capture)


def _tokens(output: Tensor) -> Tensor:
    """Return tokens (B, T, D) of what a module answered."""
    if output.ndim == 4:
        return output.flatten(2).transpose(1, 2)
    return output.unsqueeze(1) if output.ndim == 2 else output


Forward = Callable[[Tensor, Sequence[int], Sequence[str]], Mapping[str, Tensor]]


def _collect(
    images: ImageSource, names: Mapping[str, object], forward: Forward, record: Mapping[str, Any], capture: Capture
) -> dict[str, Array]:
    """Return the features of every name, batch by batch; what a cache holds already is not computed again."""
    if capture.cache is None:
        parts: dict[str, list[Array]] = {name: [] for name in names}
        for _, indices in _batches(len(images), capture.batch_size):
            for name, values in forward(images.fetch(indices)[0], indices, list(names)).items():
                parts[name].append(values.numpy())
            if capture.progress:
                capture.progress()
        return {name: np.concatenate(values) for name, values in parts.items()}
    entry = Entry(capture.cache, entry_record(images, record, capture), len(images))
    for number, indices in _batches(len(images), capture.batch_size):
        lacking = entry.lacking(list(names), indices)
        if lacking and number % capture.share.count == capture.share.rank:
            for name, values in forward(images.fetch(indices)[0], indices, lacking).items():
                entry.write(name, indices, values.numpy())
        if capture.progress:
            capture.progress()
    capture.share.wait()
    return {name: np.asarray(entry.read(name)) for name in names}


def _batches(count: int, batch_size: int) -> Iterator[tuple[int, range]]:
    for number, first in enumerate(range(0, count, batch_size)):
        yield number, range(first, min(first + batch_size, count))


def entry_record(images: ImageSource, record: Mapping[str, Any], capture: Capture) -> dict[str, Any]:
    """Return what a cache entry is found by; the batch size is in it, because rounding depends on it."""
    return {
        **record,
        "data_hash": images.digest(),
        "num_images": len(images),
        "seed": capture.seed,
        "stream": capture.stream,
        "pool": capture.pool,
        "batch_size": capture.batch_size,
        "torch": torch.__version__,
    }


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
    x = to_signed(pixels)
    noise = normal(generators(seed, stream, indices), x.shape[1:])
    times = torch.full((len(x),), t)
    expected = shape_of(model.config)
    if x.shape[1:] != expected:
        given, wanted = ("x".join(map(str, shape)) for shape in (x.shape[1:], expected))
        raise UserError(f"the images are {given} (channels x height x width); this model reads {wanted}")
    x_t = model.noised(x, noise, times, interpolant).to(like)
    inputs = {"x": x_t, "t": times.to(like.device), "y": model.null_condition(len(x))}
    if model.prefix_tokens:
        if class_tokens is None:
            raise UserError("this model reads a class token beside the image: name the teacher that it is from")
        clean = model.class_token(class_tokens(pixels)).float().cpu()
        own = normal(generators(seed, f"{stream} class", indices), clean.shape[1:])
        inputs["cls_token"] = interpolant.mix(clean, own, times).to(like)
    return inputs


def model_record(model: DiffusionModel | type[DiffusionModel]) -> dict[str, Any]:
    """Return the protocol entries of a model (or its class) of another convention, or with a class token."""
    record: dict[str, Any] = {}
    if model.native != DiffusionModel.native:
        record["native_convention"] = model.native
    if model.noising != DiffusionModel.noising:
        record["noising"] = model.noising
    if model.prefix_tokens:
        record["class_token"] = "the teacher's, noised at the same t"
    return record
