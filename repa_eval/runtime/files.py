"""Files of a run: written so that a reader never sees half of one, and read with one-line errors."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from repa_eval.errors import Failure, parsing

LARGEST_JSON = 1 << 24  # bytes
DEEPEST_JSON = 64  # levels


def write_atomic(path: str | Path, data: bytes | str, *, durable: bool = True) -> None:
    """Write a file under a temporary name and rename it, so that nobody ever sees half of it; see `atomic_file`."""
    with atomic_file(path, durable=durable) as file:
        file.write(data if isinstance(data, bytes) else data.encode("utf-8", "backslashreplace"))


@contextlib.contextmanager
def atomic_file(path: str | Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Yield a file that gets the name `path` when the `with` ends without an error; nobody ever sees half of it.

    durable: file and name are on the disk before the `with` ends, so that a power cut leaves the old content or the new
    one. False is for files that are many and can be made again.
    """
    path = Path(path)
    new_folders = _make_folders(path.parent)
    temporary = temporary_name(path)
    try:
        with open(temporary, "wb") as file:
            yield file
        if durable:
            sync(temporary)
        temporary.replace(path)
        if durable:
            for folder in (path.parent, *(folder.parent for folder in new_folders)):
                sync(folder)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # "no space left" names no file
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


def user_cache(kind: str) -> Path:
    """Return the user's folder for what can be made again: $XDG_CACHE_HOME/repa-eval/KIND, or that of ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "repa-eval" / kind


def read_json(path: str | Path) -> Any:
    """Return the content of a JSON file; Failure in one line if it is damaged or larger than any of ours.

    See `parse_json` for what counts as damaged.
    """
    path = Path(path)
    if (size := path.stat().st_size) > LARGEST_JSON:
        raise Failure(f"{path} is damaged: {size:,} bytes; no JSON file of a run is larger than {LARGEST_JSON:,}")
    return parse_json(path.read_bytes(), f"{path} is damaged")


def read_object(path: str | Path) -> dict[str, Any]:
    """Return the object in a JSON file; Failure in one line if it is damaged or something else."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise Failure(f"{path} is damaged: expected an object, not {type(content).__name__}")
    return content


def lies_beside(name: object) -> bool:
    """Return whether a name out of a file is one of a file or folder beside it, and no path that leads elsewhere."""
    return isinstance(name, str) and Path(name).name == name not in ("", "..") and not {"\\", "\0"} & set(name)


def parse_json(data: bytes | str, refusal: str) -> Any:
    """Return the content of JSON; Failure "REFUSAL: ..." in one line for what a program cannot work on.

    Refused are: bytes that are not UTF-8, NaN and infinite numbers, whole numbers beyond 64 bits, strings that no UTF-8
    can hold, and values nested deeper than any of ours.
    """
    with parsing(refusal):
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        content = json.loads(text, parse_constant=_no_number, parse_int=_whole, parse_float=_finite)
        _check_strings(content, DEEPEST_JSON)
    return content


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is not a number")


def _whole(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**64:
        raise ValueError(f"the number {digits:.20}... has more than 64 bits")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {digits:.20} is too large")
    return number


def _check_strings(content: Any, depth: int) -> None:
    if depth == 0:
        raise ValueError(f"nested deeper than {DEEPEST_JSON} levels")
    if isinstance(content, str):
        if any("\ud800" <= letter <= "\udfff" for letter in content):
            raise ValueError("a string that is not Unicode")
    elif isinstance(content, dict):
        for key, value in content.items():
            _check_strings(key, depth)
            _check_strings(value, depth - 1)
    elif isinstance(content, list):
        for value in content:
            _check_strings(value, depth - 1)


@contextlib.contextmanager
def disk_space(path: Path) -> Iterator[None]:
    """Turn "no space left" into one line: what was written before stays valid, and the same command continues."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise Failure(
            f"{path}: no space left on the disk; what was made so far is kept, the same command continues"
        ) from error
