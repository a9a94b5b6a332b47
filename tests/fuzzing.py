"""Reads files that were changed at random, and says where a reader answers otherwise than it may.

A reader may succeed, or raise a UserError of one printable line. Everything else is a finding: another error, a text
of several lines, too long a time, too much memory. Every input follows from (target, number), so that it can be made
again: `python tests/fuzzing.py "run.json" 17` reads that one and shows the traceback.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from repa_eval.errors import LONGEST_MESSAGE, UserError, first_line

TOTAL = "REPA_EVAL_FUZZ"  # the environment variable that sets the number of inputs
DEFAULT_TOTAL = 2_000
SECONDS = 20.0  # that one input may take, on a busy machine
LONGEST = LONGEST_MESSAGE + 4  # letters of a message: lists of known names are long
MEMORY = 1 << 30  # bytes that reading one input may add to the process


class Hang(BaseException):
    """An input took too long. No Exception, so that no reader takes it for a fault of the file."""


@dataclass(frozen=True)
class Finding:
    """What a reader did that it may not do. saved: the input."""

    target: str
    number: int
    what: str
    saved: Path | None = None

    def __str__(self) -> str:
        again = f'python tests/fuzzing.py "{self.target}" {self.number}'
        return f"{self.target} #{self.number}: {self.what} (again: {again}; the file: {self.saved})"


def inputs_of_each(count: int) -> int:
    """How many inputs each of `count` targets gets."""
    return -(-int(os.environ.get(TOTAL, DEFAULT_TOTAL)) // count)


def random_of(target: str, number: int) -> Random:
    return Random(f"{target}/{number}")


def outcome(read: Callable[[], object]) -> str | None:
    """What is wrong with how a reader answers, None where nothing is."""
    seconds = SECONDS
    before = _memory(peak=False)
    _forget_peak()
    try:
        with _quiet(), _at_most(seconds):
            read()
    except UserError as error:
        if (wrong := _wrong_text(str(error))) is not None:
            return wrong
    except Hang:
        return f"takes longer than {seconds:g} seconds"
    except MemoryError:
        return "MemoryError"
    except BaseException as error:  # a SystemExit is a finding, too
        if isinstance(error, KeyboardInterrupt):
            raise
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}: {first_line(error)[:200]}"
    if (grown := _memory(peak=True) - before) > MEMORY:
        return f"takes {grown / 2**30:.1f} GB"
    return None


def _wrong_text(text: str) -> str | None:
    if not text.strip() or not text.isprintable():
        return f"its message is not one printable line: {text[:200]!r}"
    return f"its message has {len(text)} letters: {text[:200]!r}..." if len(text) > LONGEST else None


def fuzz(
    name: str, path: Path, changed: Callable[[Random], bytes], read: Callable[[Path], object], count: int, save: Path
) -> list[Finding]:
    """Read `count` changed inputs of a target at `path`; those that are findings are copied to the folder `save`."""
    findings = []
    for number in range(count):
        with _quiet():
            data = changed(random_of(name, number))
        path.write_bytes(data)
        what = outcome(lambda: read(path))
        if what is not None:
            save.mkdir(parents=True, exist_ok=True)
            saved = save / f"{name.replace('/', '-')}-{number}{path.suffix}"
            saved.write_bytes(data)
            findings.append(Finding(name, number, what, saved))
    return findings


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep warnings of readers off the terminal."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    def stop(_signal: int, _frame: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _memory(*, peak: bool) -> int:
    """The resident bytes of this process: now, or the most since `_forget_peak`."""
    with contextlib.suppress(OSError):
        wanted = "VmHWM:" if peak else "VmRSS:"
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(wanted):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _forget_peak() -> None:
    with contextlib.suppress(OSError):  # Linux alone can
        Path("/proc/self/clear_refs").write_text("5")


def main(words: list[str]) -> None:
    """Read one input again; or, with a name and a range "0:500", many of them. Without words: name the targets."""
    from fuzz_targets import targets

    with tempfile.TemporaryDirectory() as folder:
        known = targets(Path(folder))
        if not words:
            print("\n".join(known))
            return
        name, numbers = words[0], words[1]
        target = known[name]
        path = target.lay_out(Path(folder) / "one")
        first, _, stop = numbers.partition(":")
        for number in range(int(first), int(stop or int(first) + 1)):
            path.write_bytes(target.changed(random_of(name, number)))
            if stop:
                print(number, outcome(lambda: target.read(path)))
            else:
                target.read(path)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    main(sys.argv[1:])
