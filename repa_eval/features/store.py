"""Features on disk, found again by what they are: an interrupted measurement goes on where it stopped.

DIR/<hash of the record>/ holds record.json and, for each layer, NAME.npy (N, ...) float32 and NAME.done (N,), a byte
per image. Both are memory-mapped: two processes can fill one entry, each its own images, and readers see whole rows.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from repa_eval.errors import Failure
from repa_eval.results import protocol_hash
from repa_eval.runtime.files import user_cache, write_atomic

Array = np.ndarray[Any, Any]


def default_folder() -> Path:
    """Return the user's cache: $XDG_CACHE_HOME/repa-eval/features, or ~/.cache/repa-eval/features."""
    return user_cache("features")


class Entry:
    """The features of `count` images under one record; names are those of layers."""

    def __init__(self, folder: Path, record: Mapping[str, Any], count: int) -> None:
        self.folder = folder / protocol_hash(dict(record))
        self.count = count
        self._arrays: dict[str, Array] = {}
        self._done: dict[str, Array] = {}
        file = self.folder / "record.json"
        if not file.is_file():
            write_atomic(file, json.dumps(dict(record), indent=1, sort_keys=True) + "\n")

    def lacking(self, names: Sequence[str], indices: Sequence[int]) -> list[str]:
        """Return the names whose features are not there for all of `indices`."""
        return [name for name in names if not self._open(name) or not self._done[name][list(indices)].all()]

    def write(self, name: str, indices: Sequence[int], values: Array) -> None:
        """Put values (len(indices), ...) in their place, then mark them as done."""
        if not self._open(name):
            self._create(name, values.shape[1:])
        rows = list(indices)
        if self._arrays[name].shape[1:] != values.shape[1:]:
            raise Failure(f"{self.folder}: {name} has rows of another shape; delete the folder")
        self._arrays[name][rows] = values
        self._arrays[name].flush()  # type: ignore[attr-defined]
        self._done[name][rows] = 1
        self._done[name].flush()  # type: ignore[attr-defined]

    def read(self, name: str) -> Array:
        """Return all features of a name (N, ...), memory-mapped; Failure if some are missing."""
        if not self._open(name) or not self._done[name].all():
            raise Failure(f"{self.folder}: features of {name} are missing")
        return self._arrays[name]

    def rows(self, name: str, indices: Sequence[int]) -> Array:
        """Return the features (len(indices), ...) of some images that are there, in memory."""
        if self.lacking([name], indices):
            raise Failure(f"{self.folder}: features of {name} are missing")
        return np.array(self._arrays[name][list(indices)])

    def _open(self, name: str) -> bool:
        if name not in self._done:
            files = (self.folder / f"{name}.npy", self.folder / f"{name}.done")
            if not files[1].is_file() or files[1].stat().st_size != self.count:
                return False
            try:
                self._arrays[name] = np.lib.format.open_memmap(files[0], mode="r+")
            except (OSError, ValueError) as error:
                raise Failure(f"{files[0]} is damaged; delete {self.folder}") from error
            self._done[name] = np.memmap(files[1], dtype=np.uint8, mode="r+", shape=(self.count,))
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
