"""Signals that ask a trainer to save and stop."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

# schedulers of clusters send SIGTERM before they kill, and SIGUSR1 where they are told to (sbatch --signal=USR1@120)
ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
INTERRUPTED, TERMINATED = 130, 143  # exit codes


class Interrupted(Exception):  # noqa: N818  (no error: everything is saved)
    """Training was stopped by a signal; everything is saved. exit_code: 130 after Ctrl-C, 143 after the others."""

    def __init__(self, text: str, by: int = signal.SIGINT) -> None:
        super().__init__(text)
        self.exit_code = INTERRUPTED if by == signal.SIGINT else TERMINATED


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], int | None]]:
    """Yield a function that returns which signal asked to stop, if one did; the same again has its usual effect."""
    sent: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {each: signal.getsignal(each) for each in ASKING}

    def note(number: int, _frame: Any) -> None:
        sent.append(number)
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    for each in ASKING:
        signal.signal(each, note)
    try:
        yield lambda: sent[0] if sent else None
    finally:
        for each, handler in before.items():
            if handler is not None:  # one that was not installed from Python
                signal.signal(each, handler)


def ignore_signals(_worker: int = 0) -> None:
    """Leave the signals to the trainer, in a process that reads images for it: a group of processes gets them all."""
    for each in ASKING:
        signal.signal(each, signal.SIG_IGN)
