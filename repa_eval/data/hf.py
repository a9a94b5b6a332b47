"""Any `datasets.Dataset` with an image column and, if it has classes, a label column; `hf:NAME` by the hub's name."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch

from repa_eval.errors import Failure, UserError, first_line
from repa_eval.interfaces.image_source import DEFAULT_KINDS, Array, ImageSource, Samples
from repa_eval.interfaces.images import data


@data("hf")
def load(name: str, split: str) -> ImageSource:
    """Return a split of the hub's data set `name` (or of a local folder that `datasets` reads)."""
    import datasets

    if not name:
        raise UserError("data 'hf' needs a name: hf:NAME")
    wanted = {"reference": "train", "val": "validation"}.get(split, split)
    try:
        dataset = datasets.load_dataset(name, split=wanted)
    except Exception as error:  # of a library that has errors of its own for scripts, files and the network
        text = first_line(error)
        raise Failure(
            f"cannot load data hf:{name} ({wanted}): {text}; without a network it must be in the cache"
        ) from error
    return read(dataset, name=f"hf:{name}", split=split)


def read(dataset: Any, *, name: str, split: str) -> DatasetImages:
    """Return the images of a `datasets.Dataset`; columns "image" (or "img") and "label" (or "labels", optional)."""
    return DatasetImages(dataset, name=name, split=split)


class DatasetImages(ImageSource):
    """The rows of a `datasets.Dataset` that has an image column and, if it has classes, a label column.

    Images are decoded when they are fetched. All must have the size of the first.
    """

    def __init__(self, dataset: Any, *, name: str, split: str) -> None:
        self.name, self.split, self._dataset = name, split, dataset
        columns = set(dataset.column_names)
        column = next((c for c in ("image", "img") if c in columns), None)
        if column is None:
            raise UserError(f"data {name}: no column 'image' (columns: {', '.join(sorted(columns))})")
        if not len(dataset):
            raise UserError(f"data {name}: no images in split {split!r}")
        self._column = column
        # an Array2D or Array3D column says its type; formatting hands it out as int64 all the same
        self._dtype = np.uint8 if getattr(dataset.features[column], "dtype", None) == "uint8" else None
        label_column = next((c for c in ("label", "labels") if c in columns), None)
        if label_column is None:
            self.labels, self.num_classes = np.zeros(len(dataset), dtype=np.int64), 1
        else:
            self.labels = np.asarray(dataset[label_column], dtype=np.int64)
            self.class_names = tuple(getattr(dataset.features[label_column], "names", None) or ())
            self.num_classes = len(self.class_names) or int(self.labels.max()) + 1
        channels, height, width = self._arrays([0])[0].shape
        self.image_shape = (channels, height, width)

    def __len__(self) -> int:
        return len(self._dataset)

    def fetch(self, indices: Sequence[int], kinds: Collection[str] = DEFAULT_KINDS) -> Samples:
        """Return images and labels at `indices`."""
        rows = [int(index) for index in indices]
        labels = torch.from_numpy(self.labels[rows])
        if "images" not in kinds:
            return Samples(labels=labels)
        arrays = self._arrays(rows)
        for row, array in zip(rows, arrays, strict=True):
            if array.shape != self.image_shape:
                size, first = ("x".join(map(str, shape)) for shape in (array.shape, self.shape))
                raise UserError(
                    f"data {self.name}: image {row} is {size} (channels x height x width), the first {first}; images "
                    "of one size and one kind are needed"
                )
        return Samples(images=torch.from_numpy(np.stack(arrays)), labels=labels)

    def _arrays(self, rows: list[int]) -> list[Array]:
        images = self._dataset[rows][self._column]
        return [_channels_first(np.asarray(image, dtype=self._dtype)) for image in images]


def _channels_first(image: Array) -> Array:
    """Return uint8 (C, H, W) from (H, W) grey or (H, W, C) pixels."""
    if image.dtype != np.uint8:
        raise UserError(f"image of type {image.dtype}: expected 8-bit pixels")
    return image[None] if image.ndim == 2 else np.moveaxis(image, -1, 0)
