"""Errors that are meant for people: the command line prints their text as one line, without a traceback."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class UserError(ValueError):
    """What was given cannot be used. The text says what was given, what is allowed and what to do."""

    exit_code = 2


class Failure(UserError):  # noqa: N818  (what is told to people, not a bug)
    """The request was right, but the work could not be done (a damaged file, a full disk)."""

    exit_code = 1


class UnknownNameError(UserError):
    """A name that nothing is registered under."""


def unknown(kind: str, given: str, allowed: Iterable[str]) -> UnknownNameError:
    """Return the error for a name that does not exist, with its nearest valid name and the whole list."""
    names = sorted(allowed)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UnknownNameError(f"unknown {kind} {given!r}{hint} (known: {', '.join(names) or 'none'})")


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
