"""Features of references on disk, found again by what they are made of, so that later calls need not extract them."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from repa_eval import __version__
from repa_eval.errors import Failure, first_line, parsing
from repa_eval.evaluation.sample_features import KINDS, Gathered
from repa_eval.metrics.shared.moments import Moments
from repa_eval.results import protocol_hash
from repa_eval.runtime.files import remove_leftovers, temporary_name, user_cache

LIMIT = 4 << 30  # bytes of all entries together

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReferenceCache:
    """A folder of <hash of the record>.npz; those that were not used for longest go first. limit: bytes of all."""

    folder: Path
    limit: int = LIMIT

    def read(self, record: Mapping[str, Any]) -> Gathered | None:
        """Return what was stored under a record; None where there is nothing, or nothing that can be read."""
        file = self._file(record)
        if not file.is_file():
            return None
        try:
            with parsing(str(file)):
                gathered = _read(file, record)
        except Failure as error:
            _log.warning("%s: the features are extracted anew", first_line(error))
            return None
        with contextlib.suppress(OSError):  # of another user
            os.utime(file)
        return gathered

    def write(self, record: Mapping[str, Any], gathered: Gathered) -> None:
        """Store features under a record, as far as they fit; a full or read-only disk is a warning."""
        arrays = _arrays(gathered)
        if sum(array.nbytes for array in arrays.values()) > self.limit:
            return
        file = self._file(record)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(file)
            temporary = temporary_name(file)
            try:
                named: dict[str, Any] = {"record": np.array(_text(record)), **arrays}
                with open(temporary, "wb") as stream:
                    np.savez(stream, **named)
                temporary.replace(file)
            finally:
                temporary.unlink(missing_ok=True)
            self._shrink(file)
        except OSError as error:
            _log.warning("the reference's features are not kept for later calls (%s)", first_line(error))

    def _file(self, record: Mapping[str, Any]) -> Path:
        return self.folder / f"{protocol_hash(record)}.npz"

    def _shrink(self, newest: Path) -> None:
        """Delete the entries that were not used for longest until all fit; never the newest."""
        states = {file: state for file in self.folder.glob("*.npz") if (state := _state(file)) is not None}
        total = sum(state.st_size for state in states.values())
        for file, state in sorted(states.items(), key=lambda item: item[1].st_mtime_ns):
            if total <= self.limit:
                return
            if file != newest:
                file.unlink(missing_ok=True)
                total -= state.st_size


def cache_in(folder: Path | None) -> ReferenceCache | None:
    """Return the cache in a folder, that of the user for None; None, with a warning, where nothing can be written."""
    try:
        chosen = folder or user_cache("references")
        chosen.mkdir(parents=True, exist_ok=True)
        if not os.access(chosen, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "not writable", str(chosen))
    except (OSError, RuntimeError) as error:
        if folder is not None:
            raise
        _log.warning(
            "no cache (%s): the reference's features are kept in memory; --cache DIR keeps them on disk",
            first_line(error),
        )
        return None
    return ReferenceCache(chosen)


def record_for(images: str, n: int, extractor: Any, batch_size: int, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """Return what features of `n` reference images are found again by; images: the hash of their content.

    The batch size is part of it, for the rounding of a network depends on it.
    """
    return {
        "version": __version__,
        "images": images,
        "n": n,
        "extractor": extractor.name,
        "extractor_hash": extractor.digest,
        "resize": extractor.resize,
        "batch_size": batch_size,
        **{name: sorted(wanted) for name, wanted in kinds.items()},
    }


def _state(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except OSError:  # deleted meanwhile by another process
        return None


def _text(record: Mapping[str, Any]) -> str:
    return json.dumps(dict(record), sort_keys=True)


def _arrays(gathered: Gathered) -> dict[str, np.ndarray[Any, Any]]:
    arrays: dict[str, np.ndarray[Any, Any]] = {f"rows_{kind}": rows for kind, rows in gathered.rows.items()}
    for kind, moments in gathered.moments.items():
        if moments.n:
            arrays |= {f"mean_{kind}": moments.mean, f"m2_{kind}": moments.m2}
    return arrays


def _read(file: Path, record: Mapping[str, Any]) -> Gathered:
    """Return the content of an entry; ValueError unless it is whole and of this record."""
    with np.load(file, allow_pickle=False) as archive:
        if str(archive["record"]) != _text(record):
            raise ValueError("its record is another one")
        held = {name: archive[name] for name in archive.files if name != "record"}
    return Gathered(record["n"], *_parts(held, record))


def _parts(held: Mapping[str, Any], record: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Moments]]:
    n = record["n"]
    rows = {kind: held[f"rows_{kind}"] for kind in KINDS if f"rows_{kind}" in held}
    moments = {kind: Moments() for kind in record["stream"]}
    for kind in record["stream"]:
        if f"mean_{kind}" in held:
            moments[kind] = Moments(n, held[f"mean_{kind}"], held[f"m2_{kind}"])
    if any(len(array) != n for array in rows.values()) or not set(record["keep"]) <= set(rows):
        raise ValueError(f"it does not hold features of {n} images")
    return rows, moments
