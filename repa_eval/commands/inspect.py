"""`repa-eval inspect`: what a checkpoint is."""

from __future__ import annotations

import json
from typing import Any

import click

from repa_eval.commands.shared.checkpoint import open_checkpoint
from repa_eval.console.app import Command, example
from repa_eval.console.options import recognising


@click.command(cls=Command)
@click.argument("ckpt")
@recognising
@click.option("--json", "as_json", is_flag=True, help="only JSON on stdout")
@example("repa-eval inspect runs/digits-repa/checkpoints/0001500.pt")
def command(ckpt: str, as_json: bool, **given: Any) -> None:
    """Say what a checkpoint is: systems it can be, architecture, sizes, step, teacher.

    Recognised by the names and shapes in it, never by its file name; nothing in it is executed.
    """
    info = open_checkpoint(ckpt, given).info()
    if as_json:
        click.echo(json.dumps(info))
        return
    width = max(map(len, info))
    for name, value in info.items():
        text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else "-" if value is None else str(value)
        click.echo(f"{name.ljust(width)}  {text}")
