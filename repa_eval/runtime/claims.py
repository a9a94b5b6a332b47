"""Pieces of work on one folder that several processes divide: what one of them has taken, no other begins."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

FILE = ".work.lock"


class Claims:
    """The pieces that this process has taken. Each is a byte of a lock file, which ends with the process at the latest.

    One object per folder and process: POSIX drops all locks of a process when it closes any handle of the file.
    postponed: how many pieces somebody else had, since it was last set to 0.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.postponed = 0
        self._handle: int | None = None

    @contextlib.contextmanager
    def taken(self, piece: str) -> Iterator[bool]:
        """Yield whether this process has the piece, and hold it until the end of the context."""
        if self._handle is None:
            self._handle = os.open(self.folder / FILE, os.O_RDWR | os.O_CREAT, 0o644)
        place = int.from_bytes(hashlib.sha256(piece.encode()).digest()[:7], "big")
        mine = self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB, place)
        try:
            yield mine
        finally:
            if mine:
                self._lock(fcntl.LOCK_UN, place)

    def _lock(self, operation: int, place: int) -> bool:
        """Return whether it worked. On a file system without locks it does: then work may be done twice."""
        assert self._handle is not None
        try:
            fcntl.lockf(self._handle, operation, 1, place)
        except OSError as error:
            return error.errno not in (errno.EAGAIN, errno.EACCES)
        return True
