"""`repa-eval sweep`: every monitor of every checkpoint of a run that has no rows yet."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from repa_eval.commands.shared.checkpoint import measurable
from repa_eval.console.app import Command, example
from repa_eval.console.numbers import Real, Whole
from repa_eval.console.options import RowsOptions
from repa_eval.console.tables import deliver
from repa_eval.errors import UserError
from repa_eval.runtime.device import choose_device


@click.command(cls=Command, short_help="Measure every checkpoint of a run")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--watch", is_flag=True, help="go on until the trainer of the run has finished")
@click.option("--every", type=Real(0.1, 86_400), default=10.0, show_default=True, help="seconds between looks")
@click.option("--teacher", "teachers", default="", help="further teachers, joined by commas")
@click.option("--method", "method_file", help="Python file of the method that was trained, if it is not installed")
@click.option(
    "--keep-samples",
    type=Whole(0),
    default=0,
    show_default=True,
    help="leave the samples of the N newest checkpoints in RUN/samples/",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N")
@click.option("--quiet", is_flag=True, help="show no progress on stderr")
@click.option("--json", "as_json", is_flag=True, help="print only JSON on stdout")
@example("repa-eval sweep runs/digits-repa")
def command(
    run: Path,
    watch: bool,
    every: float,
    teachers: str,
    method_file: str | None,
    keep_samples: int,
    device: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure alignment, probes and sample quality for every checkpoint of a run that has none yet.

    Safe to repeat, to interrupt, and to run beside the trainer: what is measured is kept, what is missing is added.
    Under `accelerate launch` or torchrun the processes divide samples and their features among them.
    """
    from repa_eval.interfaces.method import METHODS
    from repa_eval.interfaces.teacher import split_names
    from repa_eval.monitors.shared.missing import evaluate_missing
    from repa_eval.runtime.distributed import join

    if not (run / "checkpoints").is_dir():
        raise UserError(f"{run} is no run folder: it holds no checkpoints/")
    if method_file is not None:
        METHODS.load_file(method_file)
    processes = join(choose_device(device))
    added: list[Any] = []
    while True:
        # asked before the look, so that the last checkpoint is not missed
        finished = processes.agree(_status(run) != "running")
        for rows in evaluate_missing(
            _checkpoints(run, processes, split_names(teachers), keep_samples), _silent if quiet else _announce
        ):
            added += rows
        if finished or not watch:
            break
        time.sleep(every)
    done = f"{len(added)} rows added; next: repa-eval report {run}"
    if processes.first:
        deliver(added, RowsOptions(as_json=as_json), show=lambda _rows: done)


def _checkpoints(folder: Path, processes: Any, teachers: list[str], keep_samples: int) -> Iterator[Any]:
    """Open and yield one checkpoint of a run folder after another; the first process decides which there are."""
    from repa_eval import checkpoints
    from repa_eval.monitors.shared.missing import EvaluatedCheckpoint
    from repa_eval.train.evaluated import evaluated_run
    from repa_eval.train.recipe import resolve

    for path in processes.agree(sorted((folder / "checkpoints").glob("[0-9]*.pt"))):
        opened = checkpoints.load(path)
        recipe, model = resolve(opened.recipe), measurable(opened)
        run = evaluated_run(
            recipe,
            folder,
            processes.device,
            further_teachers=teachers,
            keep_samples=keep_samples,
            processes=processes,
        )
        yield EvaluatedCheckpoint(run, opened.step or 0, model)


def _announce(step: int, monitor: object) -> None:
    click.echo(f"step {step}: {type(monitor).__name__}", err=True)


def _silent(step: int, monitor: object) -> None:
    """Announce nothing."""


def _status(run: Path) -> str | None:
    from repa_eval.train.state import read_run

    return (read_run(run) or {}).get("status")
