"""Files of a run: written so that a reader never sees half of one, and read with one-line errors."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from repa_eval.errors import Failure, parsing


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Write a file under a temporary name and rename it, so that nobody ever sees half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data if isinstance(data, bytes) else data.encode())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
