"""Encoded images that are decoded when they are fetched, whatever they lie in: files, or rows of a table.

The headers of the images that are used are looked at before any of them is decoded, so that what cannot be used is
known, and counted, before hours of computing. Memory is bounded by what is read and decoded at once, whatever an image
declares.
"""

from __future__ import annotations

import contextlib
import os
from abc import abstractmethod
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch

from repa_eval.data.readers import decode
from repa_eval.errors import Failure, UserError
from repa_eval.interfaces.image_source import (
    DEFAULT_KINDS,
    Array,
    ImageSource,
    Samples,
    Shape,
    chunks,
    refuse_large_batch,
)

THREADS = min(8, os.cpu_count() or 1)
AT_ONCE = 1 << 28  # bytes of encoded or decoded images that all threads together hold
PER_PIXEL = 8  # bytes that decoding takes at most: RGBA, and a copy of it
HEAD = 1 << 14  # bytes of an image in which its header usually ends
# what to do about images of different sizes, where no command says better
PREPARE = " with `repa-eval prepare SRC DEST --resolution N`; align, probe and sweep take --resolution N themselves"

T = TypeVar("T")


class Pictures(ImageSource):
    """Encoded images of one size. A subclass calls `begin`, and says how one is read and called.

    Images are grey if all of them are, else RGB: the headers are read up to the first one that has colours.
    """

    labels: Array | None = None
    resize: int | None = None

    def begin(self, sizes: Array, *, resize: int | None, advice: str = PREPARE) -> None:
        """Take what is known of the images at the beginning.

        sizes: (N,) bytes of each, 0 where only `read` will tell. resize: every image is cropped and resized to this
        side (see `centre_crop`); None: all must have one size. advice: what to do if they have not, for the error.
        """
        self.resize, self._advice, self._sizes = resize, advice, sizes
        self._sides = np.zeros((len(sizes), 2), dtype=np.int32)  # height, width; 0 where no header was read yet
        self._coloured = np.zeros(len(sizes), dtype=bool)

    def __len__(self) -> int:
        return len(self._sizes)

    @abstractmethod
    def _called(self, index: int) -> str:
        """Return what an image is called in errors."""

    @abstractmethod
    def _read(self, index: int, most: int = decode.MAX_BYTES) -> bytes:
        """Return the first bytes of an image; Unusable where it cannot be read or is larger than any image."""

    def fetch(self, indices: Sequence[int], kinds: Collection[str] = DEFAULT_KINDS) -> Samples:
        """Return images and labels at `indices`."""
        rows = [int(index) for index in indices]
        labels = None if self.labels is None else torch.from_numpy(self.labels[rows])
        if "images" not in kinds:
            return Samples(labels=labels)
        return Samples(images=torch.from_numpy(self._decoded(rows)), labels=labels)

    def _decoded(self, indices: Sequence[int]) -> Array:
        """Return the images uint8 (B, C, H, W); each is decoded into its place, so that none is held twice."""
        self.survey(indices)
        refuse_large_batch(self.name, len(indices), self.shape)
        images = np.empty((len(indices), *self.shape), dtype=np.uint8)

        def decode_into(place: int) -> decode.Unusable | None:
            pixels = self._pixels(indices[place])
            if isinstance(pixels, decode.Unusable):
                return pixels
            images[place] = pixels.transpose(2, 0, 1)
            return None

        results = self._each(decode_into, range(len(indices)), self._bytes_of_one)
        for index, result in zip(indices, results, strict=True):
            if result is not None:
                raise self._refusal(index, result, *self._count_unusable())
        return images

    @cached_property
    def grey(self) -> bool:
        """Whether all images are grey; one that cannot be read says nothing."""
        if not self._sides[0, 0]:
            self._headers([0])
        unread = np.flatnonzero(self._sides[:, 0] == 0).tolist()
        for rows in chunks(len(unread), 8 * THREADS):
            if self._coloured.any():
                break
            self._headers(unread[rows.start : rows.stop])
        return not self._coloured.any()

    @cached_property
    def image_shape(self) -> Shape:  # type: ignore[override]
        """(C, H, W) of every image, by the first; UserError or Failure where that one cannot be used."""
        if self.resize is not None:
            height = width = self.resize
        else:
            self.survey([0])
            height, width = map(int, self._sides[0])
        return 1 if self.grey else 3, height, width

    def survey(self, rows: Sequence[int]) -> None:
        """Read the headers of the images at `rows`; UserError or Failure that counts what is wrong with them."""
        places = np.unique(np.asarray(rows, dtype=np.int64))
        new = places[self._sides[places, 0] == 0].tolist()
        heads = zip(new, self._headers(new), strict=True)
        unusable = [(row, head) for row, head in heads if isinstance(head, decode.Unusable)]
        if unusable:
            raise self._refusal(*unusable[0], len(unusable), len(places))
        if self.resize is None:
            if 0 not in places:
                self.survey([0])
            self._refuse_other_sizes(places)

    def _refuse_other_sizes(self, places: Array) -> None:
        """UserError where images at `places` do not have the size of the first image of all."""
        odd = places[(self._sides[places] != self._sides[0]).any(axis=1)]
        if len(odd):
            first, other = (f"{width}x{height}" for height, width in (self._sides[0], self._sides[odd[0]]))
            raise UserError(
                f"{self.name}: images of different sizes; {self._called(int(odd[0]))} is not like the first "
                f"({other}, not {first}; {len(odd)} of {len(places)} differ): make them equal{self._advice}"
            )

    @property
    def _bytes_of_one(self) -> int:
        """The most that one of the images takes, whose header is known, while it is decoded."""
        largest = self._sides.astype(np.int64).prod(axis=1).max()
        return int(self._sizes[self._sides[:, 0] > 0].max() + PER_PIXEL * largest)

    def _refusal(self, index: int, why: decode.Unusable, count: int, total: int) -> UserError:
        """Return the error for an image; count: how many of `total` images cannot be used."""
        many = f"; {count} of {total} images cannot be used" if total > 1 else ""
        kind = Failure if why.damaged else UserError
        return kind(f"{self.name}: {self._called(index)} {why}{many}")

    def _count_unusable(self) -> tuple[int, int]:
        """Return how many images cannot be decoded, looking at a few of them at a time, and of how many.

        Only those are counted whose header was asked for.
        """

        def is_unusable(index: int) -> bool:
            return isinstance(self._pixels(index), decode.Unusable)

        used = np.flatnonzero(self._sides[:, 0]).tolist()
        parts = (used[rows.start : rows.stop] for rows in chunks(len(used), 8 * THREADS))
        return sum(sum(self._each(is_unusable, rows, self._bytes_of_one)) for rows in parts), len(used)

    def _headers(self, rows: Sequence[int]) -> list[decode.Header | decode.Unusable]:
        """Return what the headers at `rows` say, and remember it."""
        found = self._each(self._header, rows, int(self._sizes[list(rows)].max(initial=1)))
        for row, head in zip(rows, found, strict=True):
            if isinstance(head, decode.Header):
                self._sides[row], self._coloured[row] = (head.height, head.width), not head.grey
        return found

    def _each(self, function: Callable[[int], T], indices: Sequence[int], bytes_each: int) -> list[T]:
        """Return the function's results, by as many threads as AT_ONCE allows if each holds `bytes_each`."""
        threads = min(THREADS, AT_ONCE // max(bytes_each, 1))
        if len(indices) < THREADS or threads <= 1:
            with decode.quiet():
                return [function(index) for index in indices]
        with decode.quiet(), ThreadPoolExecutor(threads) as pool:
            return list(pool.map(function, indices, chunksize=8))

    def _header(self, index: int) -> decode.Header | decode.Unusable:
        """Return what the first bytes of a file say; the whole of it is read only where these are not enough."""
        size = int(self._sizes[index])
        try:
            data = self._read(index, HEAD)
            if len(data) < size:
                with contextlib.suppress(decode.Unusable):
                    return decode.header(data, size)
                data = self._read(index)
            return decode.header(data)
        except decode.Unusable as why:
            return why.alone()

    def _pixels(self, index: int) -> Array | decode.Unusable:
        try:
            return decode.pixels(self._read(index), grey=self.grey, side=self.resize)
        except decode.Unusable as why:
            return why.alone()
