"""`repa-eval sweep`: every measure of every checkpoint of a run that has no rows yet."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from repa_eval.commandline import OneLine, choose_device, deliver, example, measurable
from repa_eval.errors import UserError


@click.command(cls=OneLine)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--watch", is_flag=True, help="go on until the trainer beside it has finished")
@click.option("--every", type=click.FloatRange(min=0.1), default=10.0, show_default=True, help="seconds between looks")
@click.option("--teacher", "teachers", default="", help="further teachers, joined by commas")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N")
@click.option("--quiet", is_flag=True, help="no progress on stderr")
@click.option("--json", "as_json", is_flag=True, help="only JSON on stdout")
@example("repa-eval sweep runs/digits-repa")
def command(run: Path, watch: bool, every: float, teachers: str, device: str, quiet: bool, as_json: bool) -> None:
    """Measure alignment, probes and sample quality for every checkpoint of a run that has none yet.

    Safe to repeat, to interrupt, and to run beside the trainer: what is measured is kept, what is missing is added.
    """
    from repa_eval.teachers._registry import split_names

    if not (run / "checkpoints").is_dir():
        raise UserError(f"{run} is no run folder: it holds no checkpoints/")
    added: list[Any] = []
    while True:
        finished = _status(run) != "running"  # asked before the look, so that the last checkpoint is not missed
        for rows in _measure_missing(run, split_names(teachers), choose_device(device), quiet):
            added += rows
        if finished or not watch:
            break
        time.sleep(every)
    done = f"{len(added)} rows added; next: repa-eval report {run}"
    deliver(added, to=None, as_json=as_json, show=lambda _rows: done)


def _measure_missing(run: Path, teachers: list[str], device: str, quiet: bool) -> Iterator[list[Any]]:
    """Yield the rows of every measure that was missing, written to the run's table as soon as they are there."""
    from repa_eval import checkpoints, monitors, results
    from repa_eval.train.recipe import resolve

    measures: list[Any] = []
    for path in sorted((run / "checkpoints").glob("[0-9]*.pt")):
        opened = checkpoints.load(path)
        if not measures:
            measurable(opened)
            measures = monitors.everything(monitors.Subject(resolve(opened.recipe), run, device), teachers)
        step = opened.step or 0
        for measure in measures:
            table = results.read(run) if results.table_path(run).is_file() else []
            if measure.done(step, table):
                continue
            if not quiet:
                click.echo(f"step {step}: {type(measure).__name__}", err=True)
            known = {row.key() for row in table}
            new = [row for row in measure(step, opened.model.to(device)) if row.key() not in known]
            results.append(run, new)
            yield new


def _status(run: Path) -> str | None:
    from repa_eval.train.state import read_run

    return (read_run(run) or {}).get("status")
