"""Images and arrays (.npy) below a folder or in a zip: listed when it is opened, read one by one."""

from __future__ import annotations

import functools
import os
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from repa_eval.data.readers.listing import SUFFIXES, list_folder, list_zip, printable
from repa_eval.data.readers.opened import PerProcess
from repa_eval.errors import Failure, UserError, parsing

ARRAYS = frozenset({".npy"})
LOCAL_HEADER, NAME_AT, EXTRA_AT = 30, 26, 28  # bytes of a member's own header in a zip, and where its lengths stand
SIGNATURE, ENCRYPTED = b"PK\x03\x04", 1


class Members:
    """The images and arrays at a path: a folder or a zip, or (`under`) a folder in one of these.

    name: as it is shown; sizes: bytes by relative path, sorted by path.
    """

    def __init__(self, path: Path) -> None:
        self.name, self.path, self.prefix = printable(path), path, ""
        self._zipped: _Zip | None = None
        if path.is_dir():
            listing = list_folder(path, SUFFIXES | ARRAYS)
        else:
            listing, infos = list_zip(self.name, _open_zip(path), SUFFIXES | ARRAYS)
            self._zipped = _Zip(path, infos)
        listing.announce(self.name)
        self.sizes = listing.sizes

    def under(self, folder: str) -> Members:
        """Return what lies in a folder of it, with paths that begin there."""
        found = Members.__new__(Members)
        found.name, found.path, found.prefix = f"{self.name}/{folder}", self.path, f"{self.prefix}{folder}/"
        found._zipped = self._zipped
        inside = f"{folder}/"
        found.sizes = {name[len(inside) :]: size for name, size in self.sizes.items() if name.startswith(inside)}
        return found

    def where(self, member: str) -> str:
        """Return how a file of it is called in errors."""
        return f"{self.name}: {printable(member)}"

    def holds(self, member: str) -> bool:
        """Return whether a file of any suffix is there."""
        if self._zipped is None:
            return (self.path / self.prefix / member).is_file()
        return self._zipped.holds(self.prefix + member)

    def read(self, member: str, most: int) -> bytes:
        """Return the bytes of a file; Failure where it cannot be read or has more than `most` bytes."""
        data = self.beginning(member, most + 1)
        if len(data) > most:
            raise Failure(f"{self.where(member)} cannot be read: it takes more than {most:,} bytes")
        return data

    def beginning(self, member: str, count: int) -> bytes:
        """Return the first `count` bytes of a file, or all of them; Failure where it cannot be read."""
        with parsing(f"{self.where(member)} cannot be read"):
            if self._zipped is not None:
                return self._zipped.beginning(self.prefix + member, count)
            with open(self.path / self.prefix / member, "rb") as handle:
                return handle.read(count)


class _Zip:
    """The members of a zip, of which little is kept, as there may be a million.

    Those that are stored are read by their place, without a ZipFile in every process.
    """

    def __init__(self, path: Path, infos: dict[str, zipfile.ZipInfo]) -> None:
        self._rows = {name: row for row, name in enumerate(infos)}
        places = [(info.header_offset, info.file_size, info.CRC) for info in infos.values()]
        self._places = np.array(places, dtype=np.int64).reshape(-1, 3)
        self._packed = {name: info.filename for name, info in infos.items() if not _is_stored(info)}
        self._file: PerProcess[BinaryIO] = PerProcess(functools.partial(_open_bytes, path))
        self._archive = PerProcess(functools.partial(_open_zip, path))

    def holds(self, member: str) -> bool:
        """Return whether there is such a member."""
        return member in self._rows

    def beginning(self, member: str, count: int) -> bytes:
        """Return the first bytes of a member, or all of them, whose checksum must be right then."""
        if member in self._packed:
            with self._archive().open(self._packed[member]) as packed:
                return packed.read(count)
        offset, size, checksum = self._places[self._rows[member]].tolist()
        handle = self._file().fileno()
        header = os.pread(handle, LOCAL_HEADER, offset)
        name, extra = (int.from_bytes(header[place : place + 2], "little") for place in (NAME_AT, EXTRA_AT))
        data = os.pread(handle, min(count, size), offset + LOCAL_HEADER + name + extra)
        whole = count >= size
        if (
            not header.startswith(SIGNATURE)
            or len(data) != min(count, size)
            or (whole and zlib.crc32(data) != checksum)
        ):
            raise ValueError("its checksum is wrong; make or copy the archive again")
        return data


def _is_stored(info: zipfile.ZipInfo) -> bool:
    return info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & ENCRYPTED


def open_members(path: Path) -> Members:
    """Return what lies in a folder or zip; UserError where there is neither."""
    if not path.exists():
        raise UserError(f"{printable(path)} does not exist")
    return Members(path)


def zip_names(path: Path) -> frozenset[str]:
    """Return the names in a zip, none for a file that is no zip or is damaged."""
    state = path.stat()
    return _zip_names(path, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=4)  # a million names take seconds, and every split asks what lies at its path
def _zip_names(path: Path, _changed: int, _size: int) -> frozenset[str]:
    try:
        return frozenset(name.replace("\\", "/") for name in _open_zip(path).namelist())
    except Failure:
        return frozenset()


def _open_bytes(path: Path) -> BinaryIO:
    return open(path, "rb")


def _open_zip(path: Path) -> zipfile.ZipFile:
    with parsing(f"{printable(path)} cannot be read"):
        return zipfile.ZipFile(path)
