"""The contract of a data set: samples are fetched by index, and nothing assumes that all of them fit into memory.

A source says which kinds of data it gives (see KINDS); a consumer asks for the kinds that it reads.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repa_eval.errors import UserError

Array = np.ndarray[Any, Any]
Shape = tuple[int, int, int]  # channels, height, width
KINDS = ("images", "latents", "moments", "labels", "captions", "text", "features", "class_tokens")
DEFAULT_KINDS = ("images", "labels")
CHUNK = 256  # samples fetched at once where a whole source is read
MAX_BATCH = 1 << 28  # bytes of images that are worked on at once, of our choice
MAX_FETCH = 1 << 31  # and those of a batch that somebody asks for


@dataclass(frozen=True)
class LatentScale:
    """What a model reads of a latent z: (z - shift) * scale, with one number for all channels or one per channel."""

    scale: tuple[float, ...] = (1.0,)
    shift: tuple[float, ...] = (0.0,)

    def __call__(self, latents: Tensor) -> Tensor:
        """Return latents (B, C, h, w), float32, as the model reads them."""
        scale, shift = (torch.tensor(values)[:, None, None] for values in (self.scale, self.shift))  # (1 or C, 1, 1)
        return (latents.float() - shift) * scale

    def fitting(self, channels: int) -> LatentScale:
        """Return it; UserError where it has neither one number nor one per channel, or a scale of 0."""
        counts = {len(self.scale), len(self.shift)}
        if not counts <= {1, channels} or 0 in self.scale:
            raise UserError(
                f"the latents' scale has {len(self.scale)} numbers and the shift {len(self.shift)}; for {channels} "
                f"channels 1 or {channels} are needed, and no scale of 0"
            )
        return self

    def undo(self, values: Tensor) -> Tensor:
        """Return the latents z (B, C, h, w) of what a model reads or makes, in its own dtype."""
        if len(self.scale) == len(self.shift) == 1:
            return values / self.scale[0] + self.shift[0]
        scale, shift = (values.new_tensor(each)[:, None, None] for each in (self.scale, self.shift))
        return values / scale + shift

    def record(self) -> dict[str, list[float]]:
        """Return the protocol entries."""
        return {"latent_scale": list(self.scale), "latent_shift": list(self.shift)}


@dataclass(frozen=True)
class Samples:
    """B samples; a kind that was not asked for, or that the source does not give, is None.

    images: uint8 (B, C, H, W). latents: float32 (B, c, h, w), unscaled. moments: float32 (B, 2c, h, w), the mean and
    the standard deviation of a posterior over latents. labels: int64 (B,). captions: B strings. text: float32
    (B, L, D), features of the captions. features: float32 (B, T, D), patch tokens that an encoder gave for the images
    when the data were made, row by row; class_tokens: its class tokens (B, D).
    """

    images: Tensor | None = None
    latents: Tensor | None = None
    moments: Tensor | None = None
    labels: Tensor | None = None
    captions: tuple[str, ...] | None = None
    text: Tensor | None = None
    features: Tensor | None = None
    class_tokens: Tensor | None = None

    @property
    def pixels(self) -> Tensor:
        """The images; UserError where there are none."""
        if self.images is None:
            raise UserError("these samples have no images; teachers and extractors read images")
        return self.images

    def __getitem__(self, rows: slice) -> Samples:
        """Return the samples of a slice of the batch."""
        held = {kind: values for kind in KINDS if (values := getattr(self, kind)) is not None}
        return Samples(**{kind: values[rows] for kind, values in held.items()})


class ImageSource(ABC):
    """A split of a data set.

    name: as the user named it; split: "train", "test", ...; both stand in protocols. split_known: False where the data
    have no splits, so that every split is the whole set and training may have seen it. gives: the kinds of data that
    `fetch` can return. num_classes: labels are 0..num_classes-1. image_shape: of every image, None where there are no
    images or where their sizes differ. latent_shape: (c, h, w) of a latent, not of its moments. latent_scale: how a
    model reads the latents. latent_record: what protocols say of where the latents are from, such as their VAE.
    mirrored: the same samples, everything in them made from the mirrored image, where the data hold both.
    feature_width: D of the features and class tokens. sequential: samples are read in order, and an earlier one costs a
    pass from the beginning, so that nothing should ask for them in random order.
    """

    name: str
    split: str
    num_classes: int
    split_known: bool = True
    sequential: bool = False
    gives: frozenset[str] = frozenset(DEFAULT_KINDS)
    class_names: tuple[str, ...] = ()
    image_shape: Shape | None = None
    latent_shape: Shape | None = None
    latent_scale: LatentScale = LatentScale()
    mirrored: ImageSource | None = None
    feature_width: int | None = None
    latent_record: Mapping[str, Any] = MappingProxyType({})

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples."""

    @abstractmethod
    def fetch(self, indices: Sequence[int], kinds: Collection[str] = DEFAULT_KINDS) -> Samples:
        """Return the samples at `indices`, with at least those of `kinds` that the source gives."""

    def survey(self, rows: Sequence[int]) -> None:  # noqa: B027  (a source in memory has nothing to look at)
        """Look at what can be known of the samples at `rows` without decoding them; UserError for what is unusable.

        Views do this for their rows when they are made, so that it is known before anything is computed.
        """

    def digest(self) -> str:
        """Return a short hash of the content, read in chunks; see `content_digest`."""
        return content_digest(self)

    @property
    def shape(self) -> Shape:
        """Channels, height and width of one image; UserError where the source has no images of one size."""
        if self.image_shape is None:
            self.require("images")
            raise UserError(f"data {self.name}: images of different sizes; images of one size are needed")
        return self.image_shape

    @property
    def model_shape(self) -> Shape:
        """Channels, height and width of what a model of this data reads: of the latents, if there are any."""
        return self.shape if self.latent_shape is None else self.latent_shape

    def require(self, *kinds: str) -> None:
        """UserError unless the source gives these kinds of data."""
        if missing := [kind for kind in kinds if kind not in self.gives]:
            given = ", ".join(sorted(self.gives))
            raise UserError(f"data {self.name} has no {' and no '.join(missing)}; it gives {given}")

    def pixels(self, indices: Sequence[int]) -> Tensor:
        """Return images uint8 (B, C, H, W) at `indices`; UserError where the source has none."""
        self.require("images")
        return self.fetch(indices, ("images",)).pixels

    def all_labels(self) -> Array:
        """Return the labels int64 (N,) of all samples, without reading their images; UserError where there are none."""
        self.require("labels")
        return np.concatenate([_labels_of(self.fetch(rows, ("labels",))) for rows in chunks(len(self), 1 << 16)])

    def head(self, count: int) -> ImageSource:
        """Return a view of the first `count` samples; UserError if there are fewer."""
        if count > len(self):
            raise UserError(f"{self.name}:{self.split} has {len(self)} images; {count} were asked for")
        return self.part(0, count)

    def part(self, first: int, stop: int) -> ImageSource:
        """Return a view of the samples first..stop-1, as many of them as there are."""
        return self._surveyed(range(len(self))[first:stop])

    def take(self, rows: Iterable[int]) -> ImageSource:
        """Return a view of the samples at `rows`, in this order."""
        return self._surveyed([int(row) for row in rows])

    def _surveyed(self, rows: Sequence[int]) -> Subset:
        self.survey(rows)
        return Subset(self, rows)


class Subset(ImageSource):
    """A view of some rows of another source, under its name or another; nothing is copied."""

    def __init__(
        self, source: ImageSource, rows: Sequence[int], *, name: str | None = None, split: str | None = None
    ) -> None:
        self.source, self.rows = source, rows
        self.name = source.name if name is None else name
        self.split = source.split if split is None else split
        self.split_known, self.sequential = source.split_known, source.sequential
        self.class_names, self.gives = source.class_names, source.gives
        self.latent_shape = source.latent_shape
        self.latent_scale, self.feature_width = source.latent_scale, source.feature_width
        self.latent_record = dict(source.latent_record)  # a view of a dict cannot be pickled for workers
        self.mirrored = None if source.mirrored is None else Subset(source.mirrored, rows, name=name, split=split)
        self._digest = ""

    @cached_property
    def num_classes(self) -> int:  # type: ignore[override]
        """Of the source, which may have to read all labels to know it."""
        return self.source.num_classes

    @cached_property
    def image_shape(self) -> Shape | None:  # type: ignore[override]
        """Of the source, which may have to read a file to know it."""
        return self.source.image_shape

    def __len__(self) -> int:
        return len(self.rows)

    def survey(self, rows: Sequence[int]) -> None:
        """Look at the rows of the source that these are."""
        self.source.survey([self.rows[row] for row in rows])

    def fetch(self, indices: Sequence[int], kinds: Collection[str] = DEFAULT_KINDS) -> Samples:
        """Return the samples at `indices` of the view."""
        return self.source.fetch([self.rows[index] for index in indices], kinds)

    def digest(self) -> str:
        """Return the hash of the content of these rows."""
        self._digest = self._digest or content_digest(self)
        return self._digest


def rows_at_once(shape: Shape | None, wanted: int | None = None) -> int:
    """Return how many of `wanted` images (C, H, W) are fetched at once: at least one, and at most MAX_BATCH bytes.

    wanted: None for CHUNK.
    """
    count = CHUNK if wanted is None else wanted
    return count if shape is None else max(1, min(count, MAX_BATCH // max(math.prod(shape), 1)))


def refuse_large_batch(name: str, count: int, shape: Shape) -> None:
    """UserError where `count` images (C, H, W) would take more memory than MAX_FETCH."""
    size = count * math.prod(shape)
    if size > MAX_FETCH:
        raise UserError(
            f"{name}: a batch of {count} images of {shape[2]}x{shape[1]} takes {size / 1e9:.1f} GB of memory; use "
            "smaller batches (--batch-size N) or smaller images"
        )


def chunks(count: int, size: int = CHUNK) -> Iterator[range]:
    """Yield range(count) in ranges of at most `size`."""
    for first in range(0, count, size):
        yield range(first, min(first + size, count))


def content_digest(source: ImageSource) -> str:
    """Return the first 12 hex digits of the sha256 of shape, pixels and labels, then of whatever else is given.

    The samples are read in chunks; an encoder's features, which follow from the images, are left out. It depends on the
    content alone: not on where or how it is stored.
    """
    shape = source.image_shape if "images" in source.gives else source.latent_shape
    content = hashlib.sha256(repr((len(source), *(shape or ()))).encode())
    for kind in ("images", "labels", "latents", "moments", "text"):
        if kind in source.gives:
            for rows in chunks(len(source), rows_at_once(source.image_shape if kind == "images" else None)):
                content.update(np.ascontiguousarray(getattr(source.fetch(rows, (kind,)), kind)).tobytes())
    if "captions" in source.gives:
        for rows in chunks(len(source)):
            content.update(_captions_of(source, rows))
    return content.hexdigest()[:12]


def _captions_of(source: ImageSource, rows: range) -> bytes:
    """Return the captions of some samples, encoded; nothing where they only repeat the names of the classes."""
    samples = source.fetch(rows, ("captions", "labels"))
    labels = [] if samples.labels is None or not source.class_names else samples.labels.tolist()
    of_classes = tuple(source.class_names[label] for label in labels)
    return b"" if samples.captions == of_classes else repr(samples.captions).encode()


def _labels_of(samples: Samples) -> Array:
    assert samples.labels is not None
    labels: Array = samples.labels.numpy()
    return labels
