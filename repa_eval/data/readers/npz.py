"""An npz of images read batch by batch: 50,000 of 256x256 are 9.8 GB, of which one batch is in memory at a time."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from repa_eval.data.readers.arrays import Member, array_names
from repa_eval.data.readers.decode import cropped
from repa_eval.data.readers.listing import printable
from repa_eval.errors import UserError
from repa_eval.interfaces.image_source import (
    DEFAULT_KINDS,
    Array,
    ImageSource,
    Samples,
    content_digest,
    refuse_large_batch,
)
from repa_eval.runtime.distributed import is_first_process

READ = frozenset({"arr_0", "arr_1", "mu", "sigma", "mu_s", "sigma_s", "provenance"})  # the rest is said to be unread
MAX_LABEL = 1 << 24  # there may be a class, or a row of a memory bank, for each

_log = logging.getLogger(__name__)


class StreamedImages(ImageSource):
    """The images `arr_0` uint8 (N, H, W, C) and labels `arr_1` of an npz, one batch in memory at a time.

    Its digest is that of the same images held in memory. resize: every image is cropped and resized to this side.
    """

    split, split_known = "all", False

    def __init__(self, path: Path, *, resize: int | None = None) -> None:
        self.name, self.path, self.resize = printable(path), path, resize
        names = array_names(path)
        held = Member(path, "arr_0") if "arr_0" in names else None
        if held is None or len(held.shape) != 4 or held.dtype != np.uint8 or held.shape[3] not in (1, 3):
            raise UserError(f"{self.name}: expected arr_0 of uint8 (N, H, W, C){_instead(held, names)}")
        if not all(held.shape):
            raise UserError(f"{self.name}: arr_0 holds no images")
        if (unread := sorted(set(names) - READ)) and is_first_process():
            _log.warning("%s: the images are those of arr_0; not read: %s", self.name, ", ".join(unread[:5]))
        self._held = held
        self.labels = _labels(path, len(held)) if "arr_1" in names else np.zeros(len(held), dtype=np.int64)
        self.num_classes = int(self.labels.max(initial=0)) + 1
        height, width, channels = held.shape[1:]
        self.image_shape = (channels, resize or height, resize or width)

    def __len__(self) -> int:
        return len(self._held)

    def fetch(self, indices: Sequence[int], kinds: Collection[str] = DEFAULT_KINDS) -> Samples:
        """Return images and labels at `indices`."""
        rows = np.asarray(indices, dtype=np.int64)
        if "images" in kinds:
            refuse_large_batch(self.name, len(rows), self.shape)
        labels = torch.from_numpy(self.labels[rows])
        return Samples(images=self._images(rows) if "images" in kinds else None, labels=labels)

    def _images(self, rows: Array) -> Tensor:
        if self.resize is not None:
            pixels = np.stack([cropped(self._image(row), self.resize) for row in rows])
        elif len(rows) and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
            pixels = self._held.rows(int(rows[0]), int(rows[-1]) + 1)
        else:
            pixels = np.empty((len(rows), *self._held.shape[1:]), dtype=np.uint8)
            for place in np.argsort(rows, kind="stable"):  # forwards through the file
                pixels[place] = self._image(rows[place])
        return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())

    def _image(self, row: int) -> Array:
        """Return one image (H, W, C) as it is in the file."""
        return self._held.rows(int(row), int(row) + 1)[0]

    def digest(self) -> str:
        """Return the digest that the same images have when they are held in memory."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return content_digest(self)


def _labels(path: Path, count: int) -> Array:
    held = Member(path, "arr_1")
    if held.shape != (count,) or held.dtype.kind not in "iu":
        raise UserError(f"{printable(path)}: arr_1 is {held.dtype} {held.shape}; expected {count} labels, one an image")
    labels = held.whole()
    if labels.min(initial=0) < 0 or labels.max(initial=0) > MAX_LABEL:
        raise UserError(
            f"{printable(path)}: arr_1 has labels {labels.min()}..{labels.max()}; 0..{MAX_LABEL:,} are allowed"
        )
    return labels.astype(np.int64)


def _instead(held: Member | None, names: Sequence[str]) -> str:
    if held is None:
        return f"; it holds {', '.join(names[:5]) or 'no named arrays'}"
    text = f", not {held.dtype} {tuple(held.shape)}"
    if held.dtype.kind == "f" and len(held.shape) == 4 and len(held):
        some = held.rows(0, min(len(held), 16))
        text += f" in {some.min():.3g}..{some.max():.3g}: convert it by your sampler's own rule (floor or round)"
    return text
