"""The lock of a run folder: one trainer at a time, for as long as its process lives."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import socket
import time
import weakref
from pathlib import Path
from typing import Self

from repa_eval.errors import Failure

LOCK = ".train.lock"  # holds "PID HOST" of the last one who took it
PATIENCE = 0.5  # seconds: somebody may look, by `holder_of`, at this very moment
TAKEN = (errno.EAGAIN, errno.EACCES)
log = logging.getLogger(__name__)


class RunLock:
    """A held lock; `with RunLock(run):` keeps every other trainer out. It ends with the process at the latest.

    The folder is made. On release it is removed again, with those above it that were made, if it holds nothing else:
    a start that is refused leaves no trace. Failure, naming process and host, if somebody else holds it.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self._made = [folder for folder in (run, *run.parents) if not folder.exists()]
        self._fresh = not (run / LOCK).exists()
        self._handle: int | None = self._acquired()
        _held.add(self)
        with contextlib.suppress(OSError):  # on a full disk nobody is named
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.release()

    def release(self) -> None:
        """Let others take the lock."""
        if self._handle is None:
            return
        with contextlib.suppress(OSError):  # somebody else has come, or has removed it all
            if self._fresh and [path.name for path in self.run.iterdir()] == [LOCK]:
                (self.run / LOCK).unlink()
                for folder in self._made:
                    folder.rmdir()
        self.forget()

    def forget(self) -> None:
        """Close this process's handle; a process that was forked from this one holds the lock on through its own."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _acquired(self) -> int:
        limit = time.monotonic() + PATIENCE
        while True:
            self.run.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.run / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            if not _taken(handle, fcntl.LOCK_EX, self.run):
                if _is_at(handle, self.run / LOCK):
                    return handle
                os.close(handle)  # who held it has removed the file meanwhile
                continue
            who = _names(handle)
            os.close(handle)
            if time.monotonic() > limit:
                raise Failure(f"{self.run}: another repa-train is writing this run ({who})")
            time.sleep(PATIENCE / 10)


def holder_of(run: Path) -> str | None:
    """Return who is writing a run at this moment ("process 12 on host a"), None if nobody is."""
    try:
        handle = os.open(run / LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError:
        return "a process of another user"
    try:
        return _names(handle) if _taken(handle, fcntl.LOCK_SH) else None
    finally:
        os.close(handle)


def _taken(handle: int, kind: int, run: Path | None = None) -> bool:
    """Return whether somebody else holds the lock; if not, it is taken with the handle.

    Where the file system has no locks, the process that the file names decides; run: who takes it is told so.
    """
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in TAKEN:
            return True
        if run is not None:
            log.warning("%s: no locks on this file system (%s); start one trainer only", run, error.strerror)
            return False
        return _lives(_content(handle))
    return False


def _names(handle: int) -> str:
    found = re.fullmatch(r"(\d+) (\S+)\s*", _content(handle))
    return f"process {found[1]} on {found[2]}" if found else "a process that left no name"


def _content(handle: int) -> str:
    return os.pread(handle, 1000, 0).decode(errors="replace")


def _lives(content: str) -> bool:
    """Return whether the named process lives; one of another host is taken to."""
    found = re.fullmatch(r"(\d{1,10}) (\S+)\s*", content)
    if found is None:
        return False
    if found[2] != socket.gethostname():
        return True
    try:
        os.kill(int(found[1]), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _is_at(handle: int, path: Path) -> bool:
    """Return whether a handle is of the file that a path names now."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _forget_in_child() -> None:
    """Close the locks in a forked process: readers of images would hold them on after the trainer was killed."""
    for lock in list(_held):
        lock.forget()


_held: weakref.WeakSet[RunLock] = weakref.WeakSet()
os.register_at_fork(after_in_child=_forget_in_child)
