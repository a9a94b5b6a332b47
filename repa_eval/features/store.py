"""Features on disk, found again by what they are: an interrupted measurement goes on where it stopped.

DIR/<hash of the record>/ holds record.json and, for each layer, NAME.npy (N, ...) float32 and NAME.done (N,), a byte
per image. Two processes can fill one entry, each its own images, and readers see whole rows.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from repa_eval.errors import Failure
from repa_eval.results import protocol_hash
from repa_eval.runtime.files import disk_space, user_cache, write_atomic

Array = np.ndarray[Any, Any]


def default_folder() -> Path:
    """Return the user's cache: $XDG_CACHE_HOME/repa-eval/features, or ~/.cache/repa-eval/features."""
    return user_cache("features")


@dataclass(frozen=True)
class _Rows:
    """The rows, each of `shape`, that begin at byte `offset` of a file of float32."""

    file: Path
    shape: tuple[int, ...]
    offset: int

    def write(self, indices: Sequence[int], values: Array) -> None:
        """Put rows in their place; by the file, since a full disk ends a process that writes into mapped memory."""
        size = math.prod(self.shape) * 4
        with open(self.file, "r+b") as handle:
            for index, row in zip(indices, np.ascontiguousarray(values, dtype=np.float32), strict=True):
                handle.seek(self.offset + int(index) * size)
                handle.write(row.tobytes())
            handle.flush()
            os.fsync(handle.fileno())


class Entry:
    """The features of `count` images under one record; names are those of layers.

    No array stays in memory: what is written goes to the file, what is read is mapped when it is asked for.
    """

    def __init__(self, folder: Path, record: Mapping[str, Any], count: int) -> None:
        self.folder = folder / protocol_hash(dict(record))
        self.count = count
        self._rows: dict[str, _Rows] = {}
        self._done: dict[str, Array] = {}
        file = self.folder / "record.json"
        if not file.is_file():
            write_atomic(file, json.dumps(dict(record), indent=1, sort_keys=True) + "\n")

    def lacking(self, names: Sequence[str], indices: Sequence[int]) -> list[str]:
        """Return the names whose features are not there for all of `indices`."""
        return [name for name in names if not self._open(name) or not self._done[name][list(indices)].all()]

    def write(self, name: str, indices: Sequence[int], values: Array) -> None:
        """Put values (len(indices), ...) in their place, then mark them as done."""
        with disk_space(self.folder):
            if not self._open(name):
                self._create(name, values.shape[1:])
            if self._rows[name].shape != values.shape[1:]:
                raise Failure(f"{self.folder}: {name} has rows of another shape; delete the folder")
            self._rows[name].write(indices, values)
        self._done[name][list(indices)] = 1
        self._done[name].flush()  # type: ignore[attr-defined]

    def read(self, name: str) -> Array:
        """Return all features of a name (N, ...), memory-mapped; Failure if some are missing."""
        if not self._open(name) or not self._done[name].all():
            raise Failure(f"{self.folder}: features of {name} are missing")
        return self._mapped(name)

    def rows(self, name: str, indices: Sequence[int]) -> Array:
        """Return the features (len(indices), ...) of some images that are there, in memory."""
        if self.lacking([name], indices):
            raise Failure(f"{self.folder}: features of {name} are missing")
        return np.array(self._mapped(name)[list(indices)])

    def _mapped(self, name: str) -> Array:
        file = self.folder / f"{name}.npy"
        try:
            mapped: Array = np.lib.format.open_memmap(file, mode="c")  # what a reader changes is its own
        except (OSError, ValueError) as error:
            raise Failure(f"{file} is damaged; delete {self.folder}") from error
        if mapped.dtype != np.float32 or len(mapped) != self.count or not mapped.flags.c_contiguous:
            raise Failure(f"{file} is damaged; delete {self.folder}")
        return mapped

    def _open(self, name: str) -> bool:
        if name not in self._done:
            done = self.folder / f"{name}.done"
            if not done.is_file() or done.stat().st_size != self.count:
                return False
            mapped: Any = self._mapped(name)
            self._rows[name] = _Rows(self.folder / f"{name}.npy", mapped.shape[1:], mapped.offset)
            self._done[name] = np.memmap(done, dtype=np.uint8, mode="r+", shape=(self.count,))
        return True

    def _create(self, name: str, shape: tuple[int, ...]) -> None:
        with self._locked():
            if not self._open(name):  # another process may have been faster
                file = self.folder / f"{name}.npy"
                whole = (self.count, *shape)
                np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=whole).flush()
                write_atomic(self.folder / f"{name}.done", bytes(self.count))
        self._open(name)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with open(self.folder / "lock", "wb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def forget(folder: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Delete the entries of these records."""
    for record in records:
        shutil.rmtree(folder / protocol_hash(dict(record)), ignore_errors=True)
