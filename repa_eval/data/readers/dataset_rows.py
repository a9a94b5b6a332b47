"""The rows of a `datasets.Dataset` as images, fetched by index: it lies in memory-mapped files, nothing is held."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from repa_eval.data.readers import decode
from repa_eval.data.readers.dataset_columns import MAX_LABEL, Columns, as_stored, encoded_image, find_columns
from repa_eval.data.readers.pictures import Pictures
from repa_eval.errors import UserError
from repa_eval.interfaces.image_source import DEFAULT_KINDS, Array, ImageSource, Samples, refuse_large_batch
from repa_eval.runtime.distributed import is_first_process

_log = logging.getLogger(__name__)


def open_rows(
    dataset: Any,
    *,
    name: str,
    split: str,
    resize: int | None = None,
    split_known: bool = True,
    roots: Sequence[str] = (),
) -> DatasetPictures | DatasetArrays:
    """Return the images of a `datasets.Dataset`; UserError for one without images.

    resize: they are cropped to it. roots: where images may lie that are not in the table itself (see `encoded_image`).
    """
    columns = find_columns(name, dataset.features)
    if not len(dataset):
        raise UserError(f"data {name}: no images in split {split!r}")
    found: DatasetPictures | DatasetArrays
    if columns.encoded:
        found = DatasetPictures(dataset, columns, name, resize, roots)
    else:
        found = DatasetArrays(dataset, columns, name, resize)
    found.split, found.split_known = split, split_known
    return found


class _Rows(ImageSource):
    """What tables of encoded images and of arrays share: labels, captions."""

    def _take_columns(self, dataset: Any, columns: Columns, name: str) -> None:
        self.name, self.gives, self.class_names = name, columns.gives, columns.class_names
        labels = np.zeros(len(dataset), dtype=np.int64)
        if columns.label is not None:
            labels = np.asarray(dataset.select_columns([columns.label]).with_format("numpy")[:][columns.label])
        self.labels: Array | None = checked_labels(name, columns.label, labels)
        if self.labels is None:
            self.gives, self.class_names = self.gives - {"labels"}, ()
        largest = 0 if self.labels is None else int(self.labels.max(initial=0))
        self.num_classes = max(len(self.class_names), largest + 1)
        self._captions = dataset.select_columns([columns.caption]).with_format(None) if columns.caption else None
        self._caption = columns.caption

    def _with_captions(self, samples: Samples, rows: list[int], kinds: Collection[str]) -> Samples:
        if self._captions is None or "captions" not in kinds:
            return samples
        return replace(samples, captions=tuple(text or "" for text in self._captions[rows][self._caption]))


class DatasetPictures(_Rows, Pictures):
    """A table whose images are encoded files; they are decoded as files are."""

    def __init__(
        self, dataset: Any, columns: Columns, name: str, resize: int | None, roots: Sequence[str] = ()
    ) -> None:
        self._take_columns(dataset, columns, name)
        self._images = as_stored(dataset.select_columns([columns.image]), columns).with_format(None)
        self._column, self._roots = columns.image, roots
        self.begin(np.zeros(len(dataset), dtype=np.int64), resize=resize)

    def fetch(self, indices: Sequence[int], kinds: Collection[str] = DEFAULT_KINDS) -> Samples:
        """Return images, labels and captions at `indices`."""
        rows = [int(index) for index in indices]
        return self._with_captions(super().fetch(rows, kinds), rows, kinds)

    def _called(self, index: int) -> str:
        return f"image {index}"

    def _read(self, index: int, most: int = decode.MAX_BYTES) -> bytes:
        try:
            value = self._images[index][self._column]
        except Exception as error:  # of a table whose file is damaged
            raise decode.Unusable("cannot be read: the table is damaged", damaged=True) from error
        data = encoded_image(value, self._roots)
        self._sizes[index] = len(data)
        return data


class DatasetArrays(_Rows):
    """A table whose images are arrays (H, W) or (H, W, C) of 8-bit pixels; all must have the size of the first."""

    def __init__(self, dataset: Any, columns: Columns, name: str, resize: int | None) -> None:
        self._take_columns(dataset, columns, name)
        self._dataset, self.resize = dataset, resize
        self._columns = columns
        channels, height, width = self._arrays([0])[0].shape
        self.image_shape = (channels, height, width)

    def __len__(self) -> int:
        return len(self._dataset)

    def fetch(self, indices: Sequence[int], kinds: Collection[str] = DEFAULT_KINDS) -> Samples:
        """Return images, labels and captions at `indices`."""
        rows = [int(index) for index in indices]
        labels = None if self.labels is None else torch.from_numpy(self.labels[rows])
        if "images" not in kinds:
            return self._with_captions(Samples(labels=labels), rows, kinds)
        refuse_large_batch(self.name, len(rows), self.shape)
        arrays = self._arrays(rows)
        for row, array in zip(rows, arrays, strict=True):
            if array.shape != self.image_shape:
                size, first = ("x".join(map(str, shape)) for shape in (array.shape, self.shape))
                raise UserError(
                    f"data {self.name}: image {row} is {size} (channels x height x width), the first {first}; images "
                    "of one size and one kind are needed"
                )
        return self._with_captions(Samples(images=torch.from_numpy(np.stack(arrays)), labels=labels), rows, kinds)

    def _arrays(self, rows: list[int]) -> list[Array]:
        images = self._dataset[rows][self._columns.image]
        return [array_pixels(image, self._columns, side=self.resize).transpose(2, 0, 1) for image in images]


def checked_labels(name: str, column: str | None, values: Array) -> Array | None:
    """Return class numbers as int64; None, and a note, for values that are none (texts, -1 for what is not known)."""
    wrong = ""
    if values.ndim != 1 or values.dtype.kind not in "iu":
        wrong = "no class numbers"
    elif len(values) and not 0 <= values.min() <= values.max() <= MAX_LABEL:
        wrong = f"{values.min()}..{values.max()}, and 0..{MAX_LABEL:,} are allowed"
    if not wrong:
        return values.astype(np.int64)
    if is_first_process():
        _log.warning("data %s: the column %s holds %s; it is used without labels", name, column, wrong)
    return None


def array_pixels(value: Any, columns: Columns, *, side: int | None = None) -> Array:
    """Return uint8 (H, W, C) of grey (H, W) or other (H, W, C) pixels; side: cropped and resized to it."""
    # an Array2D or Array3D column says its type; formatting hands it out as int64 all the same
    image = np.asarray(value, dtype=np.uint8 if columns.array_type == "uint8" else None)
    if image.dtype != np.uint8:
        raise UserError(f"image of type {image.dtype}: expected 8-bit pixels")
    pixels = image[..., None] if image.ndim == 2 else image
    return pixels if side is None else decode.cropped(pixels, side)
