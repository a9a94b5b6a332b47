"""Features of paired images: hidden states of a diffusion model per layer and time, and a teacher's patch tokens."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.errors import UserError
from repa_eval.features.call_identity import call_identity
from repa_eval.features.model_input import LatentReading
from repa_eval.features.store import Entry
from repa_eval.interfaces.image_source import ImageSource, Samples
from repa_eval.interfaces.teacher import TeacherClassTokens
from repa_eval.runtime.distributed import Share

Array = np.ndarray[Any, Any]
ClassTokens = Callable[[Tensor], Tensor]  # uint8 images (B, C, H, W) -> clean class tokens (B, z)
IN_MEMORY = 1 << 28  # bytes of features; more lie on the disk, also without a cache
POOLINGS = {"mean": "token mean", "cls": "class token", "none": "no pooling"}


@dataclass(frozen=True, kw_only=True)
class Capture:
    """How features are taken: everything that decides their values, and where they are kept meanwhile.

    pool: "mean" over the patch tokens, "cls" the class token, "none" all patch tokens. class_tokens: what gives a model
    with a class token (REG) the clean one of an image; it is noised at the same t. latents: how they are read.
    cache: a folder in which features outlive an interruption. share: this process's part of the images, which several
    need a cache for. progress: called after each batch of images.
    """

    interpolant: Interpolant = field(default_factory=Interpolant)
    seed: int = 0
    stream: str = "align"
    pool: str = "mean"
    class_tokens: ClassTokens | None = None
    latents: LatentReading = LatentReading()
    batch_size: int = 256
    cache: Path | None = None
    share: Share = field(default_factory=Share)
    progress: Callable[[], object] | None = None

    def __post_init__(self) -> None:
        if self.pool not in POOLINGS:
            raise UserError(f"pooling {self.pool!r}: choose {', '.join(POOLINGS)}")

    @property
    def class_token_record(self) -> dict[str, str]:
        """The protocol entries of the class tokens, where a teacher gives them."""
        return self.class_tokens.record() if isinstance(self.class_tokens, TeacherClassTokens) else {}

    def pooled(self, tokens: Tensor, prefix_tokens: int) -> Tensor:
        """Return (B, D), or (B, T, D) without pooling, of tokens (B, prefix + T, D), float32 on the CPU."""
        if self.pool == "cls":
            if not prefix_tokens:
                raise UserError("these hidden states have no class token; pool them by mean")
            return tokens[:, 0].float().cpu()
        patches = tokens[:, prefix_tokens:].float()
        return (patches.mean(1) if self.pool == "mean" else patches).cpu()


Forward = Callable[[Samples, Sequence[int], Sequence[str]], Mapping[str, Tensor]]


def collect(
    images: ImageSource,
    names: Mapping[str, object],
    forward: Forward,
    record: Mapping[str, Any],
    capture: Capture,
    *,
    kinds: Collection[str] = ("images",),
) -> dict[str, Array]:
    """Return the features of every name, batch by batch; what a cache holds already is not computed again.

    What is many lies on the disk and is mapped, so that memory holds what a reader reads of it. kinds: the kinds of
    data that `forward` reads.
    """
    images.require(*kinds)
    if capture.cache is not None:
        entry = Entry(capture.cache, entry_record(images, record, capture), len(images))
        return _kept(images, names, forward, entry, capture, kinds)
    parts: dict[str, Array] = {}
    for number, indices in _batches(len(images), capture.batch_size):
        found = {
            name: values.numpy() for name, values in forward(images.fetch(indices, kinds), indices, list(names)).items()
        }
        if not number:
            each = sum(values[:1].nbytes for values in found.values())
            if each * len(images) > IN_MEMORY:
                return _on_disk(images, names, forward, found, capture, kinds)
            parts = {name: np.empty((len(images), *values.shape[1:]), values.dtype) for name, values in found.items()}
        for name, values in found.items():
            parts[name][indices.start : indices.stop] = values
        if capture.progress:
            capture.progress()
    return parts


def _on_disk(
    images: ImageSource,
    names: Mapping[str, object],
    forward: Forward,
    found: Mapping[str, Array],
    capture: Capture,
    kinds: Collection[str],
) -> dict[str, Array]:
    """Return the features mapped from files that are gone with them; `found`: those of the first batch."""
    with tempfile.TemporaryDirectory(prefix="repa-eval-features-") as folder:
        entry = Entry(Path(folder), {}, len(images))
        for name, values in found.items():
            entry.write(name, range(len(values)), values)
        return _kept(images, names, forward, entry, capture, kinds)


def _kept(
    images: ImageSource,
    names: Mapping[str, object],
    forward: Forward,
    entry: Entry,
    capture: Capture,
    kinds: Collection[str],
) -> dict[str, Array]:
    """Return the features of every name from an entry, once this and the other processes have filled it."""
    for number, indices in _batches(len(images), capture.batch_size):
        lacking = entry.lacking(list(names), indices)
        if lacking and number % capture.share.count == capture.share.rank:
            for name, values in forward(images.fetch(indices, kinds), indices, lacking).items():
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
        **({} if capture.class_tokens is None else {"class_tokens": call_identity(capture.class_tokens)}),
    }
