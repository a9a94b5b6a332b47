"""Which of the registered monitors evaluate a run: all of them, or those that the trainer calls."""

from __future__ import annotations

import logging

from repa_eval.interfaces.monitor import MONITORS, AtSteps, Monitor, RegisteredMonitor
from repa_eval.monitors.shared.run import EvaluatedRun

_log = logging.getLogger(__name__)
SAID = frozenset({"null label"})  # needs that a run may lack without anybody expecting it


def all_monitors(run: EvaluatedRun) -> list[Monitor]:
    """Return every monitor that the run has the needs of, in their order; say which are left out for want of SAID."""
    lacking = [name for name, entry in sorted(MONITORS.items()) if entry.needs - _offers(run) == SAID]
    if lacking and run.processes.first:
        _log.warning("%s: %s left out, which need a null label; its model has none", run.name, ", ".join(lacking))
    return [entry.build(run) for entry in _applicable(run)]


def training_monitors(run: EvaluatedRun) -> list[Monitor]:
    """Return the monitors that the trainer calls at its evaluations, in their order."""
    monitors: list[Monitor] = []
    for entry in _applicable(run):
        if entry.in_training == "every":
            monitors.append(entry.build(run))
        elif entry.in_training == "last":
            monitors.append(AtSteps(entry.build(run), set() if run.last_step is None else {run.last_step}))
    return monitors


def _applicable(run: EvaluatedRun) -> list[RegisteredMonitor]:
    entries = sorted(MONITORS.items(), key=lambda item: (item[1].order, item[0]))
    return [entry for _, entry in entries if entry.needs <= _offers(run)]


def _offers(run: EvaluatedRun) -> set[str]:
    offers = {
        "samples": run.generates,
        "teachers": run.has_teachers,
        "memory bank": run.network.draws_snippets,
        "null label": run.network.has_null_label,
        "probe data": run.probes,
        "end of training": run.last_step is not None,
    }
    return {need for need, present in offers.items() if present}
