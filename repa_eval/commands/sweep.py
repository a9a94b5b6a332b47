"""`repa-eval sweep`: every monitor of every checkpoint of a run that has no rows yet."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from repa_eval.commands.shared.checkpoint import data_of, measurable
from repa_eval.console.app import Command, example
from repa_eval.console.numbers import Real, Whole
from repa_eval.console.options import RowsOptions
from repa_eval.console.tables import deliver
from repa_eval.errors import Failure, UserError
from repa_eval.runtime.device import choose_device


@click.command(cls=Command, short_help="Measure every checkpoint of a run")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--watch", is_flag=True, help="go on until the trainer of the run has finished")
@click.option("--every", type=Real(0.1, 86_400), default=10.0, show_default=True, help="seconds between looks")
@click.option("--data", "data_name", metavar="PATH|NAME", help="data that the run was trained on, where they are files")
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
    data_name: str | None,
    teachers: str,
    method_file: str | None,
    keep_samples: int,
    device: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure alignment, probes and sample quality for every checkpoint of a run that has none yet.

    Safe to repeat, to interrupt, and to run beside the trainer: what is measured is kept, what is missing is added.
    Sweeps of one run, started beside each other, divide the work. Under `accelerate launch` or torchrun the processes
    divide samples and their features among them.
    """
    from repa_eval.interfaces.method import METHODS
    from repa_eval.interfaces.teacher import split_names
    from repa_eval.monitors.shared.missing import evaluate_missing
    from repa_eval.runtime.claims import Claims
    from repa_eval.runtime.distributed import join
    from repa_eval.runtime.run_record import RUNNING, status_of

    if not (run / "checkpoints").is_dir():
        raise UserError(f"{run} is no run folder: it holds no checkpoints/")
    if method_file is not None:
        METHODS.load_file(method_file)
    processes = join(choose_device(device))
    announce = _silent if quiet else _announce
    claims, added = Claims(run), list[Any]()
    damaged: dict[Path, str] = {}
    while True:
        # asked before the look, so that the last checkpoint is not missed
        status, claims.postponed = processes.agree(status_of(run)), 0
        for rows in evaluate_missing(
            _checkpoints(run, processes, data_name, split_names(teachers), keep_samples, damaged), announce, claims
        ):
            added += rows
        watches, postponed = watch and status == RUNNING, processes.agree(claims.postponed)
        if not watches and not postponed:
            break
        time.sleep(every if watches else min(every, 1.0))
    done = f"{len(added)} rows added; next: repa-eval report {run}"
    if processes.first:
        deliver(added, RowsOptions(as_json=as_json), show=lambda _rows: done)
    _refuse_lost(run, status if watch else None, damaged)


def _checkpoints(
    folder: Path,
    processes: Any,
    data_name: str | None,
    teachers: list[str],
    keep_samples: int,
    damaged: dict[Path, str],
) -> Iterator[Any]:
    """Open and yield one checkpoint of a run folder after another; the first process decides which there are.

    One that is damaged is left out, with a line for the user, and put into `damaged`.
    """
    from repa_eval import checkpoints
    from repa_eval.monitors.shared.missing import EvaluatedCheckpoint
    from repa_eval.train.evaluated import evaluated_run
    from repa_eval.train.recipe import resolve
    from repa_eval.train.state import checkpoints_of

    for path in processes.agree(checkpoints_of(folder)):
        try:
            opened = checkpoints.load(path)
        except Failure as error:
            if processes.first and path not in damaged:
                click.echo(f"left out: {error}", err=True)
            damaged[path] = str(error)
            continue
        damaged.pop(path, None)  # the trainer has written it anew
        recipe, model = resolve(opened.recipe), measurable(opened)
        recipe = resolve(opened.recipe, {"data": data_of(opened, data_name)})
        run = evaluated_run(
            recipe,
            folder,
            processes.device,
            further_teachers=teachers,
            keep_samples=keep_samples,
            processes=processes,
        )
        yield EvaluatedCheckpoint(run, opened.step or 0, model)


def _refuse_lost(run: Path, status: str | None, damaged: Mapping[Path, str]) -> None:
    """Failure if a run that was watched did not come to its end, or if checkpoints could not be measured."""
    from repa_eval.runtime.run_record import FAILED, STOPPED, read_record

    if status == STOPPED:
        again = f"repa-train --recipe {run}/recipe.yaml --out {run} --resume"
        raise Failure(
            f"{run}: its status is running, but no trainer runs (nobody holds its lock); continue with: {again}"
        )
    if status == FAILED:
        reason = (read_record(run) or {}).get("reason")
        raise Failure(f"{run}: training failed: {reason}")
    if damaged:
        names = ", ".join(path.name for path in sorted(damaged))
        raise Failure(f"{run}: {names} could not be measured")


def _announce(step: int, monitor: object) -> None:
    click.echo(f"step {step}: {type(monitor).__name__}", err=True)


def _silent(step: int, monitor: object) -> None:
    """Announce nothing."""
