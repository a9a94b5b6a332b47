"""An open file in every process that needs it: a handle must not be shared by forked readers, nor be pickled."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class PerProcess(Generic[T]):
    """What `opener` opens, opened once in each process at the first call: a fork shares the place in an open file."""

    def __init__(self, opener: Callable[[], T]) -> None:
        self._opener = opener
        self._lock = threading.Lock()
        self._opened: tuple[int, T] | None = None

    def __call__(self) -> T:
        """Return it, opened in this process."""
        with self._lock:
            if self._opened is None or self._opened[0] != os.getpid():
                self._opened = os.getpid(), self._opener()
            return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return {"_opener": self._opener}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._opener, self._lock, self._opened = state["_opener"], threading.Lock(), None
