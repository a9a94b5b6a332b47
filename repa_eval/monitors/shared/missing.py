"""Evaluation of the checkpoints of a run: every monitor whose rows or files are missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from repa_eval import results
from repa_eval.diffusion.model import DiffusionModel
from repa_eval.interfaces.monitor import Monitor
from repa_eval.monitors.shared import suites
from repa_eval.monitors.shared.run import EvaluatedRun
from repa_eval.results import Row

Announce = Callable[[int, Monitor], None]


@dataclass(frozen=True)
class EvaluatedCheckpoint:
    """A model of a run at a step."""

    run: EvaluatedRun
    step: int
    model: DiffusionModel


def evaluate_missing(
    checkpoints: Iterable[EvaluatedCheckpoint], announce: Announce = lambda _step, _monitor: None
) -> Iterator[list[Row]]:
    """Yield the rows of every monitor that was not done, already appended to the table of the run.

    The first of several processes decides what is missing; it alone runs the monitors that are not shared, and it alone
    yields rows. announce: called with (step, monitor) before a monitor runs.
    """
    run: EvaluatedRun | None = None
    monitors: list[Monitor] = []
    for checkpoint in checkpoints:
        if checkpoint.run != run:  # the stages of a run have settings of their own
            run = checkpoint.run
            monitors = suites.all_monitors(run)
        for monitor in monitors:
            rows = _evaluate(checkpoint, monitor, announce)
            if rows is not None:
                yield rows


def _evaluate(checkpoint: EvaluatedCheckpoint, monitor: Monitor, announce: Announce) -> list[Row] | None:
    """Run a monitor unless it is done; return its new rows, in the first process only, else None."""
    run, step, processes = checkpoint.run, checkpoint.step, checkpoint.run.processes
    table = _table(run.folder)
    if processes.agree(monitor.done(step, table)) or not (processes.first or monitor.shared):
        return None
    if processes.first:
        announce(step, monitor)
    known = {row.key() for row in table}
    rows = [row for row in monitor(step, checkpoint.model.to(run.device)) if row.key() not in known]
    if not processes.first:
        return None
    results.append(run.folder, rows)
    return rows


def _table(folder: Path) -> list[Row]:
    return results.read(folder) if results.table_path(folder).is_file() else []
