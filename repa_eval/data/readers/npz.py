"""An npz of images read batch by batch: 50,000 of 256x256 are 9.8 GB, of which one batch is in memory at a time.

Nothing is unpickled: an array of Python objects is refused by its header.
"""

from __future__ import annotations

import hashlib
import struct
import threading
import zipfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from repa_eval.data.readers.decode import centre_crop
from repa_eval.errors import Failure, UserError, first_line

Array = np.ndarray[Any, Any]
MAX_ROW = 1 << 30  # bytes of one image
CHUNK = 256  # images at a time where all of them are read


class Member:
    """One array of an npz, read by rows. UserError or Failure for one that is damaged or would run code."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self._lock, self._place, self._stream = threading.Lock(), 0, None  # type: tuple[Any, int, IO[bytes] | None]
        try:
            self._archive = zipfile.ZipFile(path)
            info = self._archive.getinfo(f"{name}.npy")
            with self._archive.open(info) as stream:
                self.shape, fortran, self.dtype = _read_header(stream)
                begin = stream.tell()
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, struct.error, NotImplementedError) as error:
            raise Failure(f"{path} cannot be read: {first_line(error)}") from error
        if self.dtype.hasobject:
            raise Failure(f"{path} cannot be read: {name} holds Python objects, which are never unpickled")
        self._row = self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))
        rows = self.shape[0] if self.shape else 1
        if fortran or info.file_size != begin + rows * self._row or self._row > MAX_ROW:
            raise Failure(f"{path} cannot be read: {name} has {info.file_size:,} bytes, which do not fit {self.shape}")
        self._begin = begin

    def __len__(self) -> int:
        return int(self.shape[0])

    def rows(self, first: int, stop: int) -> Array:
        """Return the rows first..stop-1; quick where they follow those read before, or are stored uncompressed."""
        count = (stop - first) * self._row
        with self._lock:
            try:
                stream = self._at(self._begin + first * self._row)
                data = stream.read(count)
            except (OSError, EOFError, zipfile.BadZipFile, ValueError) as error:
                raise Failure(f"{self.path} cannot be read: {first_line(error)}") from error
        if len(data) != count:
            raise Failure(f"{self.path} cannot be read: {self.name} ends after {first + len(data) // self._row} rows")
        return np.frombuffer(data, dtype=self.dtype).reshape(stop - first, *self.shape[1:])

    def _at(self, place: int) -> IO[bytes]:
        """Return the member's stream at a place; zipfile seeks in stored members and reads on in compressed ones."""
        if self._stream is None:
            self._stream = self._archive.open(f"{self.name}.npy")
        self._stream.seek(place)
        return self._stream


class StreamedImages:
    """The images `arr_0` uint8 (N, H, W, C) and labels `arr_1` of an npz, one batch in memory at a time."""

    split = "all"

    def __init__(self, path: Path, *, resize: int | None = None) -> None:
        self.name, self.path, self.resize = str(path), path, resize
        names = array_names(path)
        self._pixels = Member(path, "arr_0") if "arr_0" in names else None
        held = self._pixels
        if held is None or len(held.shape) != 4 or held.dtype != np.uint8 or held.shape[3] not in (1, 3):
            raise UserError(f"{path}: expected arr_0 of uint8 (N, H, W, C){_instead(held, names)}")
        if not len(held):
            raise UserError(f"{path}: arr_0 holds no images")
        self._held = held
        self.labels = _labels(path, len(held)) if "arr_1" in names else np.zeros(len(held), dtype=np.int64)
        self.num_classes = int(self.labels.max(initial=0)) + 1
        height, width, channels = held.shape[1:]
        self.shape = (channels, resize or height, resize or width)

    def __len__(self) -> int:
        return len(self._held)

    def fetch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return (images uint8 (B, C, H, W), labels int64 (B,)) at `indices`."""
        rows = np.asarray(indices, dtype=np.int64)
        if len(rows) and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
            found = self._held.rows(int(rows[0]), int(rows[-1]) + 1)
        else:
            found = np.concatenate([self._held.rows(int(row), int(row) + 1) for row in rows])
        if self.resize is not None:
            found = np.stack([_resized(image, self.resize) for image in found])
        return torch.from_numpy(found.transpose(0, 3, 1, 2).copy()), torch.from_numpy(self.labels[rows])

    @property
    def images(self) -> Array:
        """All images (N, C, H, W), in memory."""
        found: Array = self.fetch(range(len(self)))[0].numpy()
        return found

    def digest(self) -> str:
        """Return the digest that the same images have when they are held in memory."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        content = hashlib.sha256(repr((len(self), *self.shape)).encode())
        for first in range(0, len(self), CHUNK):
            content.update(self.fetch(range(first, min(first + CHUNK, len(self))))[0].numpy().tobytes())
        content.update(np.ascontiguousarray(self.labels).tobytes())
        return content.hexdigest()[:12]


def array_names(path: Path) -> list[str]:
    """Return the names of the arrays of an npz; none for a lone array. Failure where the file is damaged."""
    try:
        with open(path, "rb") as handle:
            if handle.read(6) == b"\x93NUMPY":
                return []
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except (OSError, zipfile.BadZipFile, EOFError) as error:
        raise Failure(f"{path} cannot be read: {first_line(error)}") from error


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"npy version {version} is not known")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    return shape, bool(fortran) and len(shape) > 1, dtype


def _labels(path: Path, count: int) -> Array:
    held = Member(path, "arr_1")
    if held.shape != (count,) or held.dtype.kind not in "iu":
        raise UserError(f"{path}: arr_1 is {held.dtype} {held.shape}; expected {count} labels, one an image")
    return held.rows(0, count).astype(np.int64)


def _instead(held: Member | None, names: Sequence[str]) -> str:
    if held is None:
        return f"; it holds {', '.join(names[:5]) or 'no named arrays'}"
    text = f", not {held.dtype} {tuple(held.shape)}"
    if held.dtype.kind == "f" and len(held.shape) == 4 and len(held):
        some = held.rows(0, min(len(held), 16))
        text += f" in {some.min():.3g}..{some.max():.3g}: convert it by your sampler's own rule (floor or round)"
    return text


def _resized(image: Array, side: int) -> Array:
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    return np.atleast_3d(np.asarray(centre_crop(picture, side)))
