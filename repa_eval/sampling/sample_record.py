"""The record beside samples: how they were made, and how many were wanted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from repa_eval.errors import UserError
from repa_eval.runtime.files import disk_space, read_object, write_atomic

RECORD = "samples.json"
NUM = "num"  # the entry that says how many samples were wanted; it is no setting, and may grow


def record_path(path: Path) -> Path:
    """Return where the record of samples at `path` lies."""
    return path.with_name(path.name + ".json") if path.suffix == ".npz" else path / RECORD


def read_record(path: Path) -> dict[str, Any] | None:
    """Return how the samples at `path` were made, or None if nothing is recorded."""
    file = record_path(path)
    return read_object(file) if file.is_file() else None


def is_ours(record: Mapping[str, Any]) -> bool:
    """Return whether a record says how samples were made, as only ours do; a user's own may name run and step alone."""
    return "uint8" in record


def record_text(record: Mapping[str, Any]) -> str:
    """Return the content of the file of a record."""
    return json.dumps(dict(record), indent=1) + "\n"


def matching_record(path: Path, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the record at `path`, None if there is none; UserError if it has other settings."""
    before = read_record(path)
    if before is not None:
        differing = {key for key in {*before, *record} if before.get(key) != record.get(key)} - {NUM}
        if differing:
            raise UserError(
                f"{path} contains samples made with different settings ({', '.join(sorted(differing))}); choose "
                "another --out"
            )
    return before


def record_num(path: Path, num: int) -> None:
    """Write into the record of the folder `path` how many samples are wanted."""
    record = read_record(path) or {}
    if record.get(NUM) != num:
        with disk_space(path):
            write_atomic(record_path(path), record_text({**record, NUM: num}))


def check_complete(path: Path, record: Mapping[str, Any] | None, count: int) -> None:
    """UserError where not as many samples as were wanted (`count` of them) are there; older records do not say it."""
    wanted = (record or {}).get(NUM)
    if not isinstance(wanted, int) or isinstance(wanted, bool) or count == wanted:
        return
    file = record_path(path)
    if count > wanted:
        raise UserError(
            f"{path} contains {count:,} images, but {file.name} records {wanted:,} samples; move the others elsewhere"
        )
    raise UserError(
        f"{path} contains {count:,} of {wanted:,} samples: their generation was interrupted, or some were removed; "
        f'repeat the command to complete them, or write "{NUM}": {count} into {file.name} to measure these'
    )
