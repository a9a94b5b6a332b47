"""Arrays of an npz: read whole or by rows, after their headers have been checked against what the file holds.

Nothing is unpickled: an array of Python objects is refused by its header.
"""

from __future__ import annotations

import functools
import math
import shutil
import tempfile
import threading
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from repa_eval.data.readers.decode import MAX_PIXELS
from repa_eval.data.readers.listing import printable
from repa_eval.data.readers.opened import PerProcess
from repa_eval.errors import Failure, UserError, parsing
from repa_eval.interfaces.image_source import Array
from repa_eval.runtime.npy_header import read_npy_header

MAX_ROW = 4 * MAX_PIXELS  # bytes of one image
MAX_RATIO = 200  # of an array to its compressed form; images reach a tenth of that
WHOLE_RATIO = 50  # the same for an array that is held in memory
SMALL = 64 << 20  # bytes that may expand at any ratio
COPIED = 1 << 24  # bytes unpacked or transposed at once


class Member:
    """One array of an npz. UserError or Failure for one that is damaged or would run code.

    shape, dtype: as its header says them, which fits the bytes that are there. size: of the array in bytes.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name, self._where = path, name, f"{printable(path)} cannot be read"
        with parsing(self._where), zipfile.ZipFile(path) as archive:
            info = archive.getinfo(f"{name}.npy")
            with archive.open(info) as stream:
                self.shape, self.fortran, self.dtype = read_npy_header(stream)
                self._begin = stream.tell()
        if self.dtype.hasobject:
            raise Failure(f"{self._where}: {name} holds Python objects, which are never unpickled")
        self.size = self.dtype.itemsize * math.prod(self.shape)
        self._row = self.dtype.itemsize * math.prod(self.shape[1:])
        self._packed = info.compress_size
        if info.file_size != self._begin + self.size:
            raise Failure(f"{self._where}: {name} has {info.file_size:,} bytes, which do not fit {self.shape}")
        self._refuse_bomb(MAX_RATIO)
        opened = _Transposed if self.fortran else _Stream
        self._open: PerProcess[_Stream | _Transposed] = PerProcess(functools.partial(opened, self))

    def __len__(self) -> int:
        return int(self.shape[0]) if self.shape else 0

    def rows(self, first: int, stop: int) -> Array:
        """Return the rows first..stop-1."""
        if self._row > MAX_ROW:
            raise Failure(f"{self._where}: {self.name} is {self.shape}, {self._row:,} bytes a row")
        count = (stop - first) * self._row
        with parsing(self._where):
            data = self._open().read(first * self._row, count)
        if len(data) != count:
            raise Failure(f"{self._where}: {self.name} ends after {first + len(data) // max(self._row, 1)} rows")
        if self.fortran:  # of each row, too
            reversed_rows = np.frombuffer(data, dtype=self.dtype).reshape(stop - first, *self.shape[:0:-1])
            return reversed_rows.transpose(0, *range(len(self.shape) - 1, 0, -1))
        return np.frombuffer(data, dtype=self.dtype).reshape(stop - first, *self.shape[1:])

    def whole(self) -> Array:
        """Return the array; Failure where the file expands to it beyond all measure."""
        self._refuse_bomb(WHOLE_RATIO)
        with parsing(self._where), self.stream() as stream:
            data = stream.read(self.size)
            if len(data) != self.size:
                raise ValueError(f"{self.name} ends after {len(data):,} bytes")
        return np.frombuffer(data, dtype=self.dtype).reshape(self.shape, order="F" if self.fortran else "C")

    def stream(self) -> IO[bytes]:
        """Return the array's bytes, opened at their beginning."""
        with zipfile.ZipFile(self.path) as archive:  # closes the file when the stream is closed, too
            stream = archive.open(f"{self.name}.npy")
        stream.read(self._begin)  # not seek, after which the checksum is not looked at
        return stream

    @property
    def is_compressed(self) -> bool:
        """Whether the bytes can be read forwards only."""
        with zipfile.ZipFile(self.path) as archive:
            return archive.getinfo(f"{self.name}.npy").compress_type != zipfile.ZIP_STORED

    @property
    def begin(self) -> int:
        """Where the array begins, in its member of the zip."""
        return self._begin

    def _refuse_bomb(self, ratio: int) -> None:
        if self.size > max(SMALL, ratio * self._packed):
            raise Failure(
                f"{self._where}: {self.name} expands from {self._packed:,} to {self.size:,} bytes; "
                "possible decompression bomb"
            )


class _Stream:
    """The bytes of an array, at any place.

    A compressed member can be read forwards only. Passes from its beginning to its end are read like this; the first
    step back to another place unpacks it into a temporary file, which vanishes with the process.
    """

    def __init__(self, member: Member) -> None:
        self._lock, self._member = threading.Lock(), member
        self._begin, self._compressed = member.begin, member.is_compressed
        self._stream = member.stream()

    def read(self, place: int, count: int) -> bytes:
        """Return `count` bytes from `place` on."""
        with self._lock:
            if self._compressed and 0 < place < self._stream.tell() - self._begin:
                self._unpack()
            self._stream.seek(self._begin + place)
            return self._stream.read(count)

    def _unpack(self) -> None:
        unpacked: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (open as long as the process reads from it)
        with self._member.stream() as packed:
            shutil.copyfileobj(packed, unpacked, COPIED)
        self._stream, self._compressed, self._begin = unpacked, False, 0


class _Transposed:
    """The rows of an array in Fortran order, in which the first axis varies fastest, one after the other.

    They are put in order once, piece by piece, in a temporary file, which vanishes with the process. The axes of a row
    stay reversed.
    """

    def __init__(self, member: Member) -> None:
        self._lock = threading.Lock()
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (as above)
        count, width = len(member), math.prod(member.shape[1:])
        if not member.size:
            return
        ordered = np.memmap(self._file, dtype=member.dtype, mode="w+", shape=(count, width))
        step = max(COPIED // (count * member.dtype.itemsize), 1)
        with member.stream() as stream:
            for first in range(0, width, step):
                stop = min(first + step, width)
                data = stream.read((stop - first) * count * member.dtype.itemsize)
                ordered[:, first:stop] = np.frombuffer(data, dtype=member.dtype).reshape(stop - first, count).T
        ordered.flush()

    def read(self, place: int, count: int) -> bytes:
        """Return `count` bytes from `place` on."""
        with self._lock:
            self._file.seek(place)
            return self._file.read(count)


def is_zip(path: Path) -> bool:
    """Return whether a file begins as a zip does; an npz is one."""
    with parsing(f"{printable(path)} cannot be read"), open(path, "rb") as handle:
        return handle.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


def array_names(path: Path) -> list[str]:
    """Return the names of the arrays of an npz; none for a lone array. Failure where the file is damaged."""
    with parsing(f"{printable(path)} cannot be read"):
        with open(path, "rb") as handle:
            if handle.read(6) == b"\x93NUMPY":
                return []
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    if len(set(names)) < len(names):
        raise UserError(f"{printable(path)}: an array is there twice; write the file again")
    return names
