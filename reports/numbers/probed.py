"""Sample quality beside the accuracy of a probe, at the steps that have both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from repa_eval.reports.numbers.arms import Arm, aligned_block
from repa_eval.reports.numbers.frames import Map, Panel, Trace
from repa_eval.reports.numbers.profiles import PROBES, best_cell, by_group, trajectories
from repa_eval.results import Row


@dataclass(frozen=True)
class Probed:
    """A metric of sample quality against a probe at one block and timestep, a trace for each arm."""

    panel: Panel
    probe: str
    layer: int
    timestep: float
    traces: tuple[Trace, ...]


def probed(maps: Sequence[Map], rows: Sequence[Row], panel: Panel | None, arms: Sequence[Arm]) -> Probed | None:
    """Return the panel's distance against a probe; None unless some arm has both at two steps or more."""
    candidates = [own for name in PROBES for group, own in by_group(maps).items() if group.metric == name]
    members = max(candidates, key=lambda own: (own[0].group.metric == PROBES[0], len(own)), default=None)
    if members is None or panel is None or panel.direction != "lower":
        return None
    layer, timestep = best_cell(members, aligned_block(arms))
    traces = tuple(trajectories(members, layer, timestep, rows, panel.group))
    if not any(len(trace.steps) > 1 for trace in traces):
        return None
    return Probed(panel, members[0].group.metric, layer, timestep, traces)
