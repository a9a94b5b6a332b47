"""`repa-eval inspect`: what a checkpoint is."""

from __future__ import annotations

import json

import click

from repa_eval.commands.shared.checkpoint import open_checkpoint
from repa_eval.console.app import Command, example
from repa_eval.console.options import LoadingOptions, json_option, loading_options
from repa_eval.errors import one_line


@click.command(cls=Command, short_help="Identify a checkpoint")
@click.argument("ckpt")
@loading_options
@json_option
@example("repa-eval inspect runs/digits-repa/checkpoints/0001500.pt")
def command(ckpt: str, loading: LoadingOptions, as_json: bool) -> None:
    """Identify a checkpoint: systems it can be, architecture, sizes, step, teacher.

    It is recognised by the names and shapes in it, never by its file name; nothing in it is executed. Only a step that
    it does not record is read from a name of seven digits (0400000.pt), and marked so.
    """
    info = open_checkpoint(ckpt, loading).info()
    if as_json:
        click.echo(json.dumps(info))
        return
    width = max(map(len, info))
    for name, value in info.items():
        text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else "-" if value is None else str(value)
        click.echo(f"{name.ljust(width)}  {one_line(text)}")
