"""What both programs share: commands found in a folder, one-line errors, --json, options that every command takes."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from repa_eval.errors import UserError, one_line, reason_of
from repa_eval.plugin_files.loading import load
from repa_eval.runtime.distributed import leave

F = TypeVar("F", bound=Callable[..., Any])
INTERRUPTED = 130
DEBUG = "REPA_EVAL_DEBUG"


class Command(click.Command):
    """A command whose errors are one line on stderr: exit code 2 for wrong usage, 1 for a failure, 130 for Ctrl-C.

    Every command takes --plugin and --debug, which shows the traceback of an error that nobody expected.
    """

    def __init__(self, *args: Any, **extra: Any) -> None:
        super().__init__(*args, **extra)
        self.params += [_plugin_option(), _debug_option()]

    def make_context(self, *positional: Any, **extra: Any) -> click.Context:
        """Parse the words of the command line."""
        with _reader_may_leave():
            return super().make_context(*positional, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with _reader_may_leave():
            return super().invoke(ctx)

    def main(self, args: Sequence[str] | None = None, *positional: Any, **extra: Any) -> Any:
        """Run, and turn what a user can cause into one line."""
        if not extra.pop("standalone_mode", True):
            return self._in_one_line(args, *positional, **extra)
        try:
            result = self._in_one_line(args, *positional, **extra)
        except SystemExit as end:
            result = end.code
        leave(result if isinstance(result, int) else 0)

    def _in_one_line(self, args: Sequence[str] | None, *positional: Any, **extra: Any) -> Any:
        _prepare_process()
        try:
            result: Any = super().main(args, *positional, standalone_mode=False, **extra)  # type: ignore[call-overload]
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.ctx.get_help())
            result = 0
        except click.ClickException as error:
            _fail(_text(error), error.exit_code)
        except UserError as error:
            _fail(str(error), error.exit_code)
        except (KeyboardInterrupt, click.Abort):
            _fail("interrupted", INTERRUPTED)
        except _ReaderHasGone:
            with contextlib.suppress(OSError, ValueError):  # a stdout that is no file
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `| head` is no error
            result = 0
        except Exception as error:
            if _debugging(args):
                raise
            _fail(_unexpected(error), 1)
        return result


class CommandFolder(Command, click.Group):
    """A group whose commands are the modules of a package, each imported when it is called."""

    def __init__(self, *args: Any, package: str = "repa_eval.commands", **extra: Any) -> None:
        super().__init__(*args, **extra)
        self.package = package

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the modules, without importing them."""
        folder = Path(str(importlib.import_module(self.package).__file__)).parent
        names = {path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")}
        return sorted(name.removesuffix("_") for name in names)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of a module; UsageError with the nearest name if there is none."""
        names = self.list_commands(ctx)
        if cmd_name not in names:
            near = difflib.get_close_matches(cmd_name, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"unknown command {cmd_name!r}{hint} (known: {', '.join(names)})")
        stem = f"{cmd_name}_" if cmd_name in ("list",) else cmd_name
        command: click.Command = importlib.import_module(f"{self.package}.{stem}").command
        return command


def example(text: str) -> Callable[[F], F]:
    """Return a decorator that puts a runnable example into the help."""

    def attach(function: F) -> F:
        function.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\n\b\nExample:\n  {text}\n"
        return function

    return attach


class _ReaderHasGone(Exception):  # noqa: N818  (no error)
    """Whoever read our output wants no more of it."""


@contextlib.contextmanager
def _reader_may_leave() -> Iterator[None]:
    """Keep a broken pipe from click, which would end with exit code 1."""
    try:
        yield
    except BrokenPipeError as error:
        raise _ReaderHasGone from error


class _OneLine(logging.Formatter):
    """Warnings as one line, without what a file's text could do to a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return "WARNING: text"."""
        return one_line(f"{record.levelname}: {record.getMessage()}")


def _prepare_process() -> None:
    """Set up what a program of ours needs of its process: warnings in a line, and no window for figures."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    warnings.formatwarning = lambda message, *_where, **_more: f"warning: {one_line(str(message))}\n"
    os.environ["MPLBACKEND"] = "agg"  # that of a notebook's kernel need not be installed here
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8


def _debugging(args: Sequence[str] | None) -> bool:
    """Return whether tracebacks are wanted; looked up in the words, for the parser itself may have failed."""
    return os.environ.get(DEBUG, "0") not in ("", "0") or "--debug" in (sys.argv[1:] if args is None else args)


def _unexpected(error: Exception) -> str:
    """Return a line on an error that nobody expected: the system's own words for a file, else where it arose."""
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.strerror}: {error.filename}" if error.filename else str(error)
    frames = traceback.extract_tb(error.__traceback__)
    package = f"{os.sep}repa_eval{os.sep}"
    frame = next((frame for frame in reversed(frames) if package in frame.filename), frames[-1])
    where = f"{Path(frame.filename).name}, line {frame.lineno}"
    kind = "out of memory" if isinstance(error, MemoryError) else f"{type(error).__name__}: {reason_of(error)}"
    return f"unexpected error in {where}: {one_line(kind, 300)}; add --debug (or set {DEBUG}=1) for the traceback"


def _debug_option() -> click.Option:
    """Return --debug, which is looked up in the words of the command line (`_debugging`)."""
    text = "show the traceback of an unexpected error"
    return click.Option(["--debug"], is_flag=True, expose_value=False, help=text)


def _plugin_option() -> click.Option:
    """Return --plugin, which loads plug-ins before anything else of the command is looked at."""

    def load_all(_context: click.Context, _parameter: click.Parameter, named: tuple[str, ...]) -> None:
        for each in named:
            load(each)

    return click.Option(
        ["--plugin"],
        multiple=True,
        metavar="FILE_OR_MODULE",
        expose_value=False,
        is_eager=True,
        callback=load_all,
        help="load a plug-in: a Python file, a package folder or a module; repeatable",
    )


def _text(error: click.ClickException) -> str:
    if isinstance(error, click.NoSuchOption) and error.ctx is not None:
        names = [name for parameter in error.ctx.command.params for name in parameter.opts]
        known = [name for name in names if name.startswith("-")]  # arguments have no dash
        near = difflib.get_close_matches(error.option_name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else f" (known: {', '.join(sorted(known))})"
        return f"no such option {error.option_name}{hint}"
    return " ".join(error.format_message().split())


def _fail(text: str, code: int) -> NoReturn:
    click.echo(f"error: {one_line(text)}", err=True)
    sys.exit(code)
