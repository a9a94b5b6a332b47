"""What both programs share: commands found in a folder, one-line errors, --json, options that every command takes."""

from __future__ import annotations

import difflib
import importlib
import inspect
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from repa_eval.errors import UserError
from repa_eval.plugin_files.loading import load
from repa_eval.runtime.distributed import leave

F = TypeVar("F", bound=Callable[..., Any])
INTERRUPTED = 130


class Command(click.Command):
    """A command whose errors are one line on stderr: exit code 2 for wrong usage, 1 for a failure, 130 for Ctrl-C.

    Every command takes --plugin.
    """

    def __init__(self, *args: Any, **extra: Any) -> None:
        super().__init__(*args, **extra)
        self.params.append(_plugin_option())

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
        logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
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
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `| head` is no error
            result = 0
        except OSError as error:
            if error.filename is None and error.errno is None:
                raise
            _fail(f"{error.strerror}: {error.filename}" if error.filename else str(error), 1)
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
        known = [name for parameter in error.ctx.command.params for name in parameter.opts]
        near = difflib.get_close_matches(error.option_name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else f" (known: {', '.join(sorted(known))})"
        return f"no such option {error.option_name}{hint}"
    return " ".join(error.format_message().split())


def _fail(text: str, code: int) -> NoReturn:
    click.echo(f"error: {text}", err=True)
    sys.exit(code)
