"""An npz of images read batch by batch: 50,000 of 256x256 are 9.8 GB, of which one batch is in memory at a time.

Nothing is unpickled: an array of Python objects is refused by its header.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
import threading
import zipfile
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from repa_eval.data.readers.decode import centre_crop
from repa_eval.data.readers.opened import PerProcess
from repa_eval.errors import Failure, UserError, parsing
from repa_eval.interfaces.image_source import DEFAULT_KINDS, Array, ImageSource, Samples, content_digest

MAX_ROW = 1 << 30  # bytes of one image
MAX_RATIO = 200  # of an array to its compressed form; images reach a tenth of that
SMALL = 64 << 20  # bytes that may expand at any ratio
COPIED = 1 << 24  # bytes unpacked at once


class Member:
    """One array of an npz, read by rows. UserError or Failure for one that is damaged or would run code."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self._open: PerProcess[_Stream] = PerProcess(functools.partial(_Stream, path, f"{name}.npy"))
        with parsing(f"{path} cannot be read"), zipfile.ZipFile(path) as archive:
            info = archive.getinfo(f"{name}.npy")
            with archive.open(info) as stream:
                self.shape, fortran, self.dtype = _read_header(stream)
                begin = stream.tell()
            if min(self.shape, default=0) < 0:
                raise ValueError(f"{name} has the shape {self.shape}")
        if self.dtype.hasobject:
            raise Failure(f"{path} cannot be read: {name} holds Python objects, which are never unpickled")
        self._row = self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))
        rows = self.shape[0] if self.shape else 1
        if fortran or info.file_size != begin + rows * self._row or self._row > MAX_ROW:
            raise Failure(f"{path} cannot be read: {name} has {info.file_size:,} bytes, which do not fit {self.shape}")
        if info.file_size > max(SMALL, MAX_RATIO * info.compress_size):
            raise Failure(
                f"{path} cannot be read: {name} expands from {info.compress_size:,} to {info.file_size:,} bytes; "
                "possible decompression bomb"
            )
        self._begin, self.size = begin, info.file_size

    def __len__(self) -> int:
        return int(self.shape[0])

    def rows(self, first: int, stop: int) -> Array:
        """Return the rows first..stop-1."""
        count = (stop - first) * self._row
        with parsing(f"{self.path} cannot be read"):
            data = self._open().read(self._begin + first * self._row, count, begin=self._begin)
        if len(data) != count:
            raise Failure(f"{self.path} cannot be read: {self.name} ends after {first + len(data) // self._row} rows")
        return np.frombuffer(data, dtype=self.dtype).reshape(stop - first, *self.shape[1:])


class _Stream:
    """The bytes of one member of a zip, at any place.

    A compressed member can be read forwards only. Passes from its beginning to its end are read like this; the first
    step back to another place unpacks it into a temporary file, which vanishes with the process.
    """

    def __init__(self, path: Path, member: str) -> None:
        self._lock, self._archive, self._member = threading.Lock(), zipfile.ZipFile(path), member
        self._compressed = self._archive.getinfo(member).compress_type != zipfile.ZIP_STORED
        self._stream: IO[bytes] = self._archive.open(member)

    def read(self, place: int, count: int, *, begin: int) -> bytes:
        """Return `count` bytes from `place` on; begin: where the data begins."""
        with self._lock:
            if self._compressed and begin < place < self._stream.tell():
                self._unpack()
            self._stream.seek(place)
            return self._stream.read(count)

    def _unpack(self) -> None:
        unpacked: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (open as long as the process reads from it)
        with self._archive.open(self._member) as packed:
            shutil.copyfileobj(packed, unpacked, COPIED)
        self._stream, self._compressed = unpacked, False


class StreamedImages(ImageSource):
    """The images `arr_0` uint8 (N, H, W, C) and labels `arr_1` of an npz, one batch in memory at a time.

    Its digest is that of the same images held in memory. resize: every image is cropped and resized to this side.
    """

    split = "all"

    def __init__(self, path: Path, *, resize: int | None = None) -> None:
        self.name, self.path, self.resize = str(path), path, resize
        names = array_names(path)
        held = Member(path, "arr_0") if "arr_0" in names else None
        if held is None or len(held.shape) != 4 or held.dtype != np.uint8 or held.shape[3] not in (1, 3):
            raise UserError(f"{path}: expected arr_0 of uint8 (N, H, W, C){_instead(held, names)}")
        if not len(held):
            raise UserError(f"{path}: arr_0 holds no images")
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
        labels = torch.from_numpy(self.labels[rows])
        return Samples(images=self._images(rows) if "images" in kinds else None, labels=labels)

    def _images(self, rows: Array) -> Tensor:
        if len(rows) and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
            pixels = self._held.rows(int(rows[0]), int(rows[-1]) + 1)
        else:
            pixels = np.empty((len(rows), *self._held.shape[1:]), dtype=np.uint8)
            for place in np.argsort(rows, kind="stable"):  # forwards through the file
                pixels[place] = self._held.rows(int(rows[place]), int(rows[place]) + 1)[0]
        if self.resize is not None:
            pixels = np.stack([_resized(image, self.resize) for image in pixels])
        return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())

    def digest(self) -> str:
        """Return the digest that the same images have when they are held in memory."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return content_digest(self)


def array_names(path: Path) -> list[str]:
    """Return the names of the arrays of an npz; none for a lone array. Failure where the file is damaged."""
    with parsing(f"{path} cannot be read"):
        with open(path, "rb") as handle:
            if handle.read(6) == b"\x93NUMPY":
                return []
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


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
