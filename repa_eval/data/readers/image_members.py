"""Images among the files of a layout that says itself how many there are, and of which class.

Only the first is looked at when they are opened, whatever their number; all must be like it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
import torch

from repa_eval.data.readers import decode
from repa_eval.data.readers.dataset_json import UNLABELLED, Labels
from repa_eval.data.readers.members import Members
from repa_eval.errors import Failure, UserError
from repa_eval.interfaces.image_source import (
    DEFAULT_KINDS,
    Array,
    ImageSource,
    Samples,
    content_digest,
    refuse_large_batch,
)

THREADS = min(8, os.cpu_count() or 1)


class ImageMembers(ImageSource):
    """The images `files` among `members`, in their order. resize: they are cropped and resized to this side."""

    split, split_known = "all", False

    def __init__(
        self, members: Members, files: Sequence[str], labels: Labels = UNLABELLED, *, resize: int | None = None
    ) -> None:
        self.name, self.files, self.resize = members.name, files, resize
        self._members, self._labels = members, labels
        self.gives = frozenset({"images"} if labels.values is None else {"images", "labels"})
        self.num_classes, self.class_names = labels.count, labels.names
        first = self._header(files[0])
        self._grey = first.grey
        height, width = (first.height, first.width) if resize is None else (resize, resize)
        self.image_shape = (1 if first.grey else 3, height, width)

    def __len__(self) -> int:
        return len(self.files)

    def fetch(self, indices: Sequence[int], kinds: Collection[str] = DEFAULT_KINDS) -> Samples:
        """Return images and labels at `indices`; Failure or UserError for an image that is unlike the first."""
        rows, values = np.asarray(indices, dtype=np.int64), self._labels.values
        labels = None if values is None or "labels" not in kinds else torch.from_numpy(values[rows])
        if "images" not in kinds:
            return Samples(labels=labels)
        refuse_large_batch(self.name, len(rows), self.shape)
        images = np.empty((len(rows), *self.shape), dtype=np.uint8)

        def decode_into(place: int) -> None:
            images[place] = self._pixels(self.files[rows[place]])

        with decode.quiet():
            if len(rows) < THREADS:
                for place in range(len(rows)):
                    decode_into(place)
            else:
                with ThreadPoolExecutor(THREADS) as pool:
                    list(pool.map(decode_into, range(len(rows))))
        return Samples(images=torch.from_numpy(images), labels=labels)

    def digest(self) -> str:
        """Return the digest that the same images have in any other layout."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return content_digest(self)

    def _header(self, file: str) -> decode.Header:
        try:
            return decode.header(self._members.read(file, decode.MAX_BYTES))
        except decode.Unusable as why:
            raise self._refusal(file, why) from why

    def _pixels(self, file: str) -> Array:
        """Return an image (C, H, W)."""
        data = self._members.read(file, decode.MAX_BYTES)
        try:
            head = decode.header(data)
            if self._grey and not head.grey:
                raise decode.Unusable("has colours, and the first image is grey; make them alike")
            found = decode.pixels(data, grey=self._grey, side=self.resize).transpose(2, 0, 1)
        except decode.Unusable as why:
            raise self._refusal(file, why) from why
        if found.shape != self.image_shape:
            given, first = (f"{shape[2]}x{shape[1]}" for shape in (found.shape, self.shape))
            raise UserError(
                f"{self._members.where(file)} is {given}, the first image {first}: images of one size are needed"
            )
        return found

    def _refusal(self, file: str, why: decode.Unusable) -> UserError:
        return (Failure if why.damaged else UserError)(f"{self._members.where(file)} {why}")
