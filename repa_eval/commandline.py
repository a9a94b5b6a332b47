"""What both programs share: commands found in a folder, one-line errors, --json, options that every command takes."""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from repa_eval.errors import UserError
from repa_eval.results import Row, append, records_of
from repa_eval.shares import leave

F = TypeVar("F", bound=Callable[..., Any])
INTERRUPTED = 130
TIMESTEPS = "0.05,0.1,0.2,0.3,0.5"
DTYPES = ("float32", "bfloat16", "float16", "float64")


class OneLine(click.Command):
    """A command whose errors are one line on stderr: exit code 2 for wrong usage, 1 for a failure, 130 for Ctrl-C."""

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


class Folder(OneLine, click.Group):
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


def computing(function: F) -> F:
    """Add the options of every command that computes: --seed, --device, --batch-size, --quiet."""
    for decorator in (
        click.option("--quiet", is_flag=True, help="no progress on stderr"),
        click.option(
            "--batch-size", type=click.IntRange(min=1), default=256, show_default=True, help="images per forward"
        ),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N"),
        click.option("--seed", type=int, default=0, show_default=True, help="seed of noise and labels"),
    ):
        function = decorator(function)
    return function


def measuring(function: F) -> F:
    """Add the options of every command that measures: --rows and --json."""
    function = click.option("--json", "as_json", is_flag=True, help="only JSON on stdout")(function)
    return click.option(
        "--rows", type=click.Path(dir_okay=False, path_type=Path), help="append the rows to this table"
    )(function)


def recognising(function: F) -> F:
    """Add the options that say how a checkpoint is opened: --weights, --set, --allow-nan."""
    for decorator in (
        click.option("--allow-nan", is_flag=True, help="open it even if weights are not finite"),
        click.option(
            "--set",
            "settings",
            multiple=True,
            metavar="KEY=VALUE",
            help="what the file cannot tell, such as num_heads=6 or system=DiT",
        ),
        click.option(
            "--weights",
            type=click.Choice(["ema", "online"]),
            default="ema",
            show_default=True,
            help="averaged or trained weights",
        ),
    ):
        function = decorator(function)
    return function


def opening(function: F) -> F:
    """Add the options that open a checkpoint to compute with: --ckpt, --dtype and those of `recognising`."""
    function = click.option(
        "--dtype", type=click.Choice(DTYPES), default="float32", show_default=True, help="in which the model computes"
    )(function)
    function = recognising(function)
    return click.option("--ckpt", required=True, help="checkpoint: a file, a folder or hf:owner/name[:file]")(function)


def open_checkpoint(ckpt: str, given: Mapping[str, Any]) -> Any:
    """Return the Checkpoint that --ckpt names, opened as the options of `recognising` say."""
    from repa_eval import checkpoints
    from repa_eval.config import parse_overrides

    overrides = parse_overrides(given["settings"])
    return checkpoints.load(ckpt, weights=given["weights"], overrides=overrides, allow_nan=given["allow_nan"])


def measurable(opened: Any) -> Any:
    """Return the opened checkpoint's model; UserError unless it is a diffusion model of the family."""
    from repa_eval.models._encoder import Encoder
    from repa_eval.models.layers import DiffusionModel

    if not isinstance(opened.model, DiffusionModel):
        hint = "; name it as --teacher" if isinstance(opened.model, Encoder) else ""
        raise UserError(
            f"{opened.path} holds {opened.model_name}, which is no diffusion model: it has no blocks to measure{hint}"
        )
    return opened.model


def data_of(opened: Any, given: str | None) -> str:
    """Return the data to measure on: as given, else as recorded; UserError if neither says it."""
    name = given or opened.recipe.get("data")
    if not name:
        raise UserError(f"{opened.path} does not say what it was trained on: name the images with --data")
    return str(name)


def class_tokens_of(opened: Any, device: str, given: str | None) -> Any:
    """Return what gives a model with a class token the clean one of an image, None for other models.

    It is that of the teacher the checkpoint was trained with; where the file names none, of the first of `given`.
    """
    from repa_eval.teachers._registry import class_tokens_by, load_teacher, split_names

    if not measurable(opened).prefix_tokens:
        return None
    recorded = split_names(opened.option("enc_type") or "")
    names = recorded or split_names(given or "")
    if not names:
        raise UserError(f"{opened.path} reads a teacher's class token: name the teacher with --teacher")
    weights = opened.recipe.get("teacher_weights") if recorded else None
    return class_tokens_by(load_teacher(names[0], weights).to(device))


def gridded(function: F) -> F:
    """Add the options of a layer x timestep grid: --layer, --timesteps, --teacher, --data."""
    for decorator in (
        click.option("--data", "data_name", help="default: the data that the checkpoint was trained on"),
        click.option("--teacher", "teacher_name", help="default: the teacher that the checkpoint was trained with"),
        click.option("--timesteps", default=TIMESTEPS, show_default=True, help="times in [0, 1], 1 = noise"),
        click.option("--layer", "--layers", "layers", default="all", show_default=True, help="block numbers, or all"),
    ):
        function = decorator(function)
    return function


def deliver(rows: Sequence[Row], *, to: Path | None, as_json: bool, show: Callable[[Sequence[Row]], str]) -> None:
    """Append rows to a table if asked for, and print them: as JSON, or as `show` writes them."""
    if to is not None:
        append(to, rows)
    if as_json:
        notes = sorted({row.note for row in rows if row.note and not row.note.startswith("{")})  # {: a confusion
        click.echo(
            json.dumps({"rows": [asdict(row) for row in rows], "protocols": records_of(rows), "warnings": notes})
        )
    else:
        click.echo(show(rows))


def table(header: Sequence[str], body: Sequence[Sequence[object]]) -> str:
    """Return lines with aligned columns."""
    cells = [list(map(str, header)), *([str(cell) for cell in line] for line in body)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


def block_numbers(text: str, opened: Any) -> list[int]:
    """Return the block numbers meant by "all" or "3,4"; UserError if the checkpoint's model does not have one."""
    depth = measurable(opened).depth
    if text == "all":
        return list(range(1, depth + 1))
    try:
        layers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--layer {text!r}: expected block numbers joined by commas, or all") from error
    aligned = opened.option("encoder_depth")
    for layer in layers:
        if not 1 <= layer <= depth:
            hint = f"; its aligned block is {aligned}" if aligned else ""
            raise UserError(f"layer {layer}: this model has blocks 1..{depth}{hint}")
    return layers


def run_columns(opened: Any) -> dict[str, Any]:
    """Return the columns that say which checkpoint a row speaks of."""
    return {
        "run": opened.run,
        "system": opened.systems[0] if opened.systems else None,
        "method": opened.recipe.get("method"),
        "step": opened.step,
        "weights": opened.weights,
        "train_seed": opened.recipe.get("seed"),
    }


def layer_table(rows: Sequence[Row], aligned: int | None) -> str:
    """Return a table per metric: a line per timestep, a column per layer, the best layer of a line marked."""
    records = records_of(rows)
    groups: dict[tuple[str, str | None], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.metric, row.protocol), []).append(row)
    blocks = []
    for (metric, protocol), members in groups.items():
        teacher = records.get(protocol or "", {}).get("teacher")
        layers = sorted({row.layer for row in members if row.layer is not None})
        body = []
        for t in sorted({row.timestep for row in members if row.timestep is not None}):
            values = {row.layer: row.value for row in members if row.timestep == t}
            finite = [value for value in values.values() if value is not None]
            best = max(finite) if finite and len(layers) > 1 else None
            errors = {row.layer: row.stderr for row in members if row.timestep == t}
            body.append([f"{t:g}", *(_cell(values.get(layer), best, errors.get(layer)) for layer in layers)])
        header = ["t", *(f"block {layer}{'*' if layer == aligned else ''}" for layer in layers)]
        title = f"{metric}{f' with {teacher}' if teacher else ''}, n={members[0].n}, t=1 is noise"
        blocks.append(f"{title}{', * aligned block' if aligned else ''}\n{table(header, body)}")
    return "\n\n".join(blocks)


def _cell(value: float | None, best: float | None, stderr: float | None) -> str:
    if value is None:
        return "-"
    spread = "" if stderr is None else f"+-{stderr:.3f}"
    return f"{value:.3f}{spread}{'<' if best is not None and value == best else ' '}"


def parse_floats(text: str, what: str) -> list[float]:
    """Return the numbers of "0.1,0.3"."""
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise UserError(f"{what} {text!r}: expected numbers joined by commas") from error


def choose_device(name: str) -> str:
    """Return the torch device for auto, cpu, cuda or cuda:N; UserError if it is not here."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cpu" and not re.fullmatch(r"cuda(:\d+)?", name):
        raise UserError(f"device {name!r}: choose auto, cpu, cuda or cuda:N")
    if name != "cpu" and not torch.cuda.is_available():
        raise UserError(f"device {name!r}: no CUDA device is here; use --device cpu")
    return name


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
