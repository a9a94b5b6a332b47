"""Files of a run: written so that a reader never sees half of one, and read with one-line errors."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from repa_eval.errors import Failure, parsing


def write_atomic(path: str | Path, data: bytes | str, *, durable: bool = True) -> None:
    """Write a file under a temporary name and rename it, so that nobody ever sees half of it.

    durable: file and name are on the disk before this returns, so that a power cut leaves the old content or the new
    one. False is for files that are many and can be made again.
    """
    path = Path(path)
    new_folders = _make_folders(path.parent)
    temporary = temporary_name(path)
    try:
        temporary.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "backslashreplace"))
        if durable:
            sync(temporary)
        temporary.replace(path)
        if durable:
            for folder in (path.parent, *(folder.parent for folder in new_folders)):
                sync(folder)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: str | Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # a file system that cannot sync a folder
            raise
    finally:
        os.close(handle)


def _make_folders(folder: Path) -> list[Path]:
    """Make a folder with its parents, and return those that were not there."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def temporary_name(path: Path) -> Path:
    """Return the hidden name beside a file under which this process writes it: .NAME.PID.tmp."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def remove_leftovers(path: Path) -> None:
    """Remove what processes that are dead by now had begun to write for a file, under `temporary_name`."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if is_leftover(left):
            left.unlink(missing_ok=True)


def is_leftover(file: Path) -> bool:
    """Return whether a file is a temporary one of a process of this machine that is dead."""
    found = re.fullmatch(r"\..+\.([0-9]{1,10})\.tmp", file.name)
    if found is None:
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # somebody else's process
        return False
    return False


def read_json(path: str | Path) -> Any:
    """Return the content of a JSON file; Failure in one line if it is damaged (not UTF-8, cut off, nested too deep)."""
    with parsing(f"{path} is damaged"):
        return json.loads(Path(path).read_text(encoding="utf-8"))


@contextlib.contextmanager
def disk_space(path: Path) -> Iterator[None]:
    """Turn "no space left" into one line: what was written before stays valid, and the same command continues."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise Failure(
            f"{path}: no space left on the disk; the samples made so far are kept, the same command continues"
        ) from error
