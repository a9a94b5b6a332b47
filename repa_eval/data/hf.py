"""Any `datasets.Dataset` with an image column and, if it has classes, a label column; `hf:NAME` by the hub's name."""

from __future__ import annotations

from typing import Any

import numpy as np

from repa_eval.errors import Failure, UserError, first_line
from repa_eval.interfaces.images import Images, data


@data("hf")
def load(name: str, split: str) -> Images:
    """Return a split of the hub's data set `name` (or of a local folder that `datasets` reads)."""
    import datasets

    if not name:
        raise UserError("data 'hf' needs a name: hf:NAME")
    wanted = {"reference": "train", "val": "validation"}.get(split, split)
    try:
        dataset = datasets.load_dataset(name, split=wanted)
    except (OSError, ValueError) as error:
        text = first_line(error)
        raise Failure(
            f"cannot load data hf:{name} ({wanted}): {text}; without a network it must be in the cache"
        ) from error
    return read(dataset, name=f"hf:{name}", split=split)


def read(dataset: Any, *, name: str, split: str) -> Images:
    """Return a `datasets.Dataset` as Images; columns "image" (or "img") and "label" (or "labels", optional)."""
    columns = set(dataset.column_names)
    image_column = next((c for c in ("image", "img") if c in columns), None)
    if image_column is None:
        raise UserError(f"data {name}: no column 'image' (columns: {', '.join(sorted(columns))})")
    label_column = next((c for c in ("label", "labels") if c in columns), None)
    # an Array2D or Array3D column says its type; formatting hands it out as int64 all the same
    kind = np.uint8 if getattr(dataset.features[image_column], "dtype", None) == "uint8" else None
    images = np.stack([_channels_first(np.asarray(image, dtype=kind)) for image in dataset[image_column][:]])
    if label_column is None:
        return Images(name, split, images, np.zeros(len(images), dtype=np.int64), 1)
    labels = np.asarray(dataset[label_column], dtype=np.int64)
    names = tuple(getattr(dataset.features[label_column], "names", None) or ())
    return Images(name, split, images, labels, len(names) or int(labels.max()) + 1, names)


def _channels_first(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return uint8 (C, H, W) from (H, W) grey or (H, W, C) pixels."""
    if image.dtype != np.uint8:
        raise UserError(f"image of type {image.dtype}: expected 8-bit pixels")
    return image[None] if image.ndim == 2 else np.moveaxis(image, -1, 0)
