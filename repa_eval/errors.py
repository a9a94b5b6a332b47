"""Errors that are meant for people: the command line prints their text as one line, without a traceback."""

from __future__ import annotations

import contextlib
import difflib
import re
import reprlib
from collections.abc import Iterable, Iterator

LONGEST_WORD = 100  # letters of a name that somebody may have misspelled
LONGEST_PATH = 300  # letters of a word in an error
LONGEST_MESSAGE = 2000  # letters of an error; lists of names are the longest
_SURROGATES = re.compile("[\ud800-\udfff]")
_short = reprlib.Repr()
_short.maxlevel, _short.maxstring, _short.maxother, _short.maxlong = 2, 80, 80, 80


class UserError(ValueError):
    """What was given cannot be used. The text says what was given, what is allowed and what to do.

    It is one printable line, whatever names out of a file stand in it.
    """

    exit_code = 2

    def __str__(self) -> str:
        return one_line(super().__str__())


class Failure(UserError):  # noqa: N818  (what is told to people, not a bug)
    """The request was right, but the work could not be done (a damaged file, a full disk)."""

    exit_code = 1


class UnknownNameError(UserError):
    """A name that nothing is registered under."""


class UnknownSplitError(UserError):
    """A split that a data set does not have."""


def unknown(kind: str, given: str, allowed: Iterable[str]) -> UnknownNameError:
    """Return the error for a name that does not exist, with its nearest valid name and the whole list."""
    names = sorted(allowed)
    near = difflib.get_close_matches(given[:LONGEST_WORD], names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UnknownNameError(f"unknown {kind} {short_repr(given)}{hint} (known: {', '.join(names) or 'none'})")


def short_repr(value: object) -> str:
    """Return the repr of any value of a file, cut to about 80 letters; what refers to itself is not written out."""
    return _short.repr(value)


def valid_text(text: str) -> str:
    """Return text that UTF-8 can hold: the bytes of a file name that are no UTF-8 become \\xNN."""
    return _SURROGATES.sub(_escaped, text)


def one_line(text: str, most: int = LONGEST_MESSAGE) -> str:
    """Return text as one line of printable letters, cut at `most`: what a file says moves no cursor and forges no line.

    Line breaks become spaces, longer words than any path are cut; escape codes and other control characters are
    written as \\xNN.
    """
    line = " ".join(word if len(word) <= LONGEST_PATH else f"{word[:LONGEST_WORD]}..." for word in text.split())
    line = line[: 2 * most]
    if not line.isprintable():
        line = "".join(letter if letter.isprintable() else _escaped(letter) for letter in line)
    return line if len(line) <= most else f"{line[:most]} ..."


def _escaped(letter: str | re.Match[str]) -> str:
    code = ord(letter if isinstance(letter, str) else letter[0])
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00  # a byte of a file name
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its kind where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def reason_of(error: BaseException) -> str:
    """Return what an error of a parser says, in one line: a KeyError alone would be a bare name."""
    return f"no entry {error}" if isinstance(error, KeyError) else first_line(error)


@contextlib.contextmanager
def parsing(text: str) -> Iterator[None]:
    """Turn whatever a parser raises on a file into a Failure "TEXT: its first line"; a UserError passes as it is.

    A parser of foreign bytes may raise anything (IndexError, struct.error, RecursionError, zlib.error, ...), so that a
    list of exceptions is never complete.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise Failure(f"{text}: {reason_of(error)}") from error
