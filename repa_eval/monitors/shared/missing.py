"""Evaluation of the checkpoints of a run: every monitor whose rows or files are missing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from repa_eval import results
from repa_eval.diffusion.model import DiffusionModel
from repa_eval.interfaces.monitor import Monitor, piece_of
from repa_eval.monitors.shared import suites
from repa_eval.monitors.shared.run import EvaluatedRun
from repa_eval.results import Row
from repa_eval.runtime.claims import Claims

Announce = Callable[[int, Monitor], None]


@dataclass(frozen=True)
class EvaluatedCheckpoint:
    """A model of a run at a step."""

    run: EvaluatedRun
    step: int
    model: DiffusionModel


def evaluate_missing(
    checkpoints: Iterable[EvaluatedCheckpoint],
    announce: Announce = lambda _step, _monitor: None,
    claims: Claims | None = None,
) -> Iterator[list[Row]]:
    """Yield the rows of every monitor that was not done, already appended to the table of the run.

    The first of several processes decides what is missing; it alone runs the monitors that are not shared, and it alone
    yields rows. announce: called with (step, monitor) before a monitor runs. claims: what another sweep of the run, or
    its trainer, is measuring at this moment is left out and counted there (`postponed`).
    """
    run: EvaluatedRun | None = None
    monitors: list[Monitor] = []
    for checkpoint in checkpoints:
        if checkpoint.run != run:  # the stages of a run have settings of their own
            run, table = checkpoint.run, _Table(checkpoint.run.folder)
            monitors = suites.all_monitors(run)
        for monitor in monitors:
            rows = _evaluate(checkpoint, monitor, announce, table, claims or Claims(checkpoint.run.folder))
            if rows is not None:
                yield rows


def _evaluate(
    checkpoint: EvaluatedCheckpoint, monitor: Monitor, announce: Announce, table: _Table, claims: Claims
) -> list[Row] | None:
    """Run a monitor unless it is done or taken; return its new rows, in the first process only, else None."""
    run, step, processes = checkpoint.run, checkpoint.step, checkpoint.run.processes
    if processes.agree(monitor.done(step, table.rows())):
        return None
    with claims.taken(piece_of(step, monitor)) if processes.first else contextlib.nullcontext(True) as mine:
        claims.postponed += not mine
        done = not mine or monitor.done(step, table.rows())  # by whoever had it meanwhile
        if processes.agree(done) or not (processes.first or monitor.shared):
            return None
        if processes.first:
            announce(step, monitor)
        rows = list(monitor(step, checkpoint.model.to(run.device)))
        return results.append_new(run.folder, rows) if processes.first else None


class _Table:
    """The rows of a run, read again when the file has changed."""

    def __init__(self, folder: Path) -> None:
        self._file = results.table_path(folder)
        self._seen: tuple[int, int] | None = None
        self._rows: list[Row] = []

    def rows(self) -> list[Row]:
        """Return the rows as they are now."""
        if not self._file.is_file():
            return []
        state = self._file.stat()
        if self._seen != (state.st_size, state.st_mtime_ns):
            self._seen, self._rows = (state.st_size, state.st_mtime_ns), results.read(self._file)
        return self._rows
