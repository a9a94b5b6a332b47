"""When an arm first has the baseline's last value, in steps and in seconds, for every pair of seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from repa_eval.reports.numbers.arms import Arm
from repa_eval.reports.numbers.frames import Panel, Points, clock, interpolate, series
from repa_eval.reports.numbers.pairs import pairs_of
from repa_eval.results import Row


@dataclass(frozen=True)
class TimeToReach:
    """When an arm first has the other's last value."""

    target: float
    step: float | None  # mean over the pairs, interpolated between evaluations; None if never in some pair
    last_step: float
    reached: int
    seeds: int
    seconds: tuple[float, float] | None  # of the arm at that step, of the other at its end
    shares: tuple[float, ...] = ()  # of the other's steps, one of every pair that reached it
    second_shares: tuple[float, ...] = ()  # of the other's seconds; empty if a clock is missing


def time_to_reach(panel: Panel, rows: Sequence[Row], timing: Sequence[Row], arm: Arm, other: Arm) -> TimeToReach | None:
    """Return when the arm first has the last value of the other; None if nothing can be compared."""
    lower = panel.direction == "lower"
    targets, steps, lasts, ends = [], [], [], []
    seconds: list[tuple[float, float]] = []
    for run, partner in pairs_of(arm, other):
        own, base = series(rows, panel.group, run), series(rows, panel.group, partner)
        if not own or not base:
            continue
        last, target = base[-1]
        step = crossing(own, target, lower=lower)
        targets.append(target)
        lasts.append(last)
        if step is not None:
            steps.append(step)
            ends.append(last)
            mine, theirs = interpolate(clock(timing, run), step), interpolate(clock(timing, partner), last)
            if mine is not None and theirs is not None:
                seconds.append((mine, theirs))
    if not targets:
        return None
    complete = len(steps) == len(targets)
    timed = complete and len(seconds) == len(steps) and all(base > 0 for _, base in seconds)
    return TimeToReach(
        target=_average(targets),
        step=_average(steps) if complete else None,
        last_step=_average(lasts),
        reached=len(steps),
        seeds=len(targets),
        seconds=(_average([own for own, _ in seconds]), _average([base for _, base in seconds])) if timed else None,
        shares=tuple(step / end for step, end in zip(steps, ends, strict=True) if end > 0),
        second_shares=tuple(own / base for own, base in seconds) if timed else (),
    )


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def crossing(points: Points, target: float, *, lower: bool) -> float | None:
    """Return the first step at which the curve has the target, on straight lines between evaluations."""
    before: tuple[float, float] | None = None
    for step, value in points:
        if value <= target if lower else value >= target:
            if before is None or before[1] == value:
                return step
            return before[0] + (step - before[0]) * (target - before[1]) / (value - before[1])
        before = (step, value)
    return None
