"""The rows of a `datasets.IterableDataset` as images: read from the beginning, in order, with few of them held.

Whoever asks for an earlier row than those that are held has the stream read again from its beginning.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from repa_eval.data.readers import decode
from repa_eval.data.readers.dataset_columns import as_stored, encoded_image, find_columns
from repa_eval.data.readers.dataset_rows import array_pixels, checked_labels
from repa_eval.data.readers.opened import PerProcess
from repa_eval.errors import Failure, UserError, first_line
from repa_eval.interfaces.image_source import (
    DEFAULT_KINDS,
    Array,
    ImageSource,
    Samples,
    Shape,
    Subset,
    refuse_large_batch,
)

HELD = 1 << 28  # bytes of encoded images that are kept of what was read last
MOST_HELD = 1 << 16  # and rows, whose images may lie elsewhere
Row = Mapping[str, Any]


class DatasetStream(ImageSource):
    """The images of a stream, fetched by index; ascending indices read it once.

    The first image says whether all are grey or RGB. count: how many there are, None where only reading them tells.
    roots: see `encoded_image`.
    """

    sequential = True

    def __init__(
        self,
        dataset: Any,
        *,
        name: str,
        split: str,
        resize: int | None = None,
        count: int | None = None,
        roots: Sequence[str] = (),
    ) -> None:
        self._roots = roots
        self.name, self.split, self.resize, self._count = name, split, resize, count
        self._columns = columns = find_columns(name, dataset.features)
        wanted = [column for column in (columns.image, columns.label, columns.caption) if column is not None]
        self._rows = PerProcess(functools.partial(_Rows, as_stored(dataset.select_columns(wanted), columns), name))
        self.gives, self.class_names = columns.gives, columns.class_names
        first = self._rows().at(0)
        if (
            columns.label is not None
            and checked_labels(name, columns.label, np.asarray([first[columns.label]])) is None
        ):
            self.gives, self.class_names = self.gives - {"labels"}, ()
        self._grey, self.image_shape = self._first(first)

    def __len__(self) -> int:
        if self._count is None:
            self._count = self._rows().count()
        return self._count

    @cached_property
    def num_classes(self) -> int:  # type: ignore[override]
        """By the names of the classes, else by the largest label, for which the whole stream is read once."""
        if self.class_names or self._columns.label is None or "labels" not in self.gives:
            return max(len(self.class_names), 1)
        return int(self.all_labels().max(initial=0)) + 1

    def head(self, count: int) -> ImageSource:
        """Return a view of the first `count` samples, which is an error when one of them is asked for and not there."""
        return super().head(count) if self._count is not None else Subset(self, range(count))

    def fetch(self, indices: Sequence[int], kinds: Collection[str] = DEFAULT_KINDS) -> Samples:
        """Return the samples at `indices`, reading forwards; UserError where the stream ends before one of them."""
        rows = np.asarray(indices, dtype=np.int64)
        given = [kind for kind in kinds if kind in self.gives]
        images = np.empty((len(rows), *self.shape), dtype=np.uint8) if "images" in given else None
        labels, captions = np.zeros(len(rows), dtype=np.int64), [""] * len(rows)
        if images is not None:
            refuse_large_batch(self.name, len(rows), self.shape)
        with decode.quiet():
            for place in np.argsort(rows, kind="stable"):
                row = self._rows().at(int(rows[place]))
                if images is not None:
                    images[place] = self._image(int(rows[place]), row)
                if "labels" in given and self._columns.label is not None:
                    labels[place] = self._label(int(rows[place]), row[self._columns.label])
                if "captions" in given:
                    captions[place] = row[self._columns.caption or ""] or ""
        return Samples(
            images=None if images is None else torch.from_numpy(images),
            labels=torch.from_numpy(labels) if "labels" in given else None,
            captions=tuple(captions) if "captions" in given else None,
        )

    def _label(self, index: int, value: object) -> int:
        if not isinstance(value, int) or value < 0:
            raise UserError(f"data {self.name}: image {index} has the label {value!r}; class numbers are expected")
        return value

    def _first(self, row: Row) -> tuple[bool, Shape]:
        """Return whether images are grey, and their shape, by the first of them."""
        if self._columns.encoded:
            try:
                head = decode.header(encoded_image(row[self._columns.image], self._roots))
            except decode.Unusable as why:
                raise self._refusal(0, why) from why
            grey, height, width = head.grey, head.height, head.width
        else:
            height, width, channels = array_pixels(row[self._columns.image], self._columns).shape
            grey = channels == 1
        if self.resize is not None:
            height = width = self.resize
        return grey, (1 if grey else 3, height, width)

    def _image(self, index: int, row: Row) -> Array:
        """Return an image (C, H, W); Failure or UserError for one that is unlike the first."""
        value = row[self._columns.image]
        if self._columns.encoded:
            try:
                data = encoded_image(value, self._roots)
                if self._grey and not decode.header(data).grey:
                    raise decode.Unusable("has colours, and the first image is grey; hf:NAME reads such data")
                found = decode.pixels(data, grey=self._grey, side=self.resize)
            except decode.Unusable as why:
                raise self._refusal(index, why) from why
        else:
            found = array_pixels(value, self._columns, side=self.resize)
        if found.shape[:2] != self.shape[1:] or found.shape[2] != self.shape[0]:
            size, first = (f"{shape[1]}x{shape[0]}" for shape in (found.shape, self.shape[1:]))
            raise UserError(
                f"{self.name}: images of different sizes; image {index} is not like the first ({size}, not {first}): "
                "align, probe and sweep take --resolution N"
            )
        return found.transpose(2, 0, 1)

    def _refusal(self, index: int, why: decode.Unusable) -> UserError:
        return (Failure if why.damaged else UserError)(f"{self.name}: image {index} {why}")


class _Rows:
    """A pass over a stream, and the rows that it gave last."""

    def __init__(self, dataset: Any, name: str) -> None:
        self.dataset, self.name = dataset, name
        self._held: OrderedDict[int, Row] = OrderedDict()
        self._begin()

    def _begin(self) -> None:
        self._held.clear()
        self._bytes, self._next = 0, 0
        self._iterator: Iterator[Row] = iter(self.dataset)

    def at(self, index: int) -> Row:
        """Return a row, reading on to it, or again from the beginning; UserError where the stream ends before it."""
        if index not in self._held and index < self._next:
            self._begin()
        while self._next <= index:
            if self._read() is None:
                raise UserError(
                    f"data {self.name} ends after {self._next} images; image {index} (counted from 0) was asked for"
                )
        return self._held[index]

    def count(self) -> int:
        """Return the number of rows, reading on to the end."""
        while self._read() is not None:
            pass
        return self._next

    def _read(self) -> Row | None:
        """Return the next row, None at the end, and drop the oldest where too much is held."""
        try:
            row = next(self._iterator, None)
        except Exception as error:  # of the network, or of any format that a shard has
            raise Failure(f"data {self.name} cannot be read beyond image {self._next}: {first_line(error)}") from error
        if row is not None:
            self._held[self._next] = row
            self._bytes += _size(row)
            self._next += 1
            while len(self._held) > 1 and (self._bytes > HELD or len(self._held) > MOST_HELD):
                self._bytes -= _size(self._held.popitem(last=False)[1])
        return row


def _size(row: Row) -> int:
    """Return about how many bytes a row takes."""
    return sum(
        len(value.get("bytes") or b"") if isinstance(value, Mapping) else np.asarray(value).nbytes
        for value in row.values()
    )
