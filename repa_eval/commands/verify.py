"""`repa-eval verify`: whether the files of a run are whole."""

from __future__ import annotations

import json
from pathlib import Path

import click

from repa_eval.console.app import Command, example
from repa_eval.console.options import json_option
from repa_eval.errors import one_line


@click.command(cls=Command)
@click.argument("run", type=click.Path(path_type=Path))
@json_option
@example("repa-eval verify runs/digits-repa")
def command(run: Path, as_json: bool) -> None:
    """Check that the files of a run are whole.

    Reads checksums of checkpoints, tables, protocol records, run.json, recipe and pictures. Prints a line for every
    fault, and ends with exit code 1 where there is one.
    """
    from repa_eval.commands.shared.verification import faults_of

    checked, faults = faults_of(run)
    if as_json:
        click.echo(json.dumps({"checked": checked, "faults": faults}))
    else:
        counts = ", ".join(f"{count} {what}" for what, count in checked.items())
        click.echo("\n".join(map(one_line, faults)) if faults else f"{run}: {counts}, no fault")
    if faults:
        raise SystemExit(1)
