"""`repa-eval inspect`: what a checkpoint is."""

from __future__ import annotations

import json

import click

from repa_eval.commandline import OneLine, example


@click.command(cls=OneLine)
@click.argument("ckpt")
@click.option(
    "--weights", type=click.Choice(["ema", "online"]), default="ema", show_default=True, help="averaged or trained"
)
@click.option("--json", "as_json", is_flag=True, help="only JSON on stdout")
@example("repa-eval inspect runs/digits-repa/checkpoints/0001500.pt")
def command(ckpt: str, weights: str, as_json: bool) -> None:
    """Say what a checkpoint is: systems it can be, architecture, sizes, step, teacher."""
    from repa_eval import checkpoints

    info = checkpoints.load(ckpt, weights=weights).info()
    if as_json:
        click.echo(json.dumps(info))
        return
    width = max(map(len, info))
    for name, value in info.items():
        text = ", ".join(value) if isinstance(value, list) else "-" if value is None else str(value)
        click.echo(f"{name.ljust(width)}  {text}")
