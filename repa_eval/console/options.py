"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from repa_eval.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])
TIMESTEPS = "0.05,0.1,0.2,0.3,0.5"
DTYPES = ("float32", "bfloat16", "float16", "float64")


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
