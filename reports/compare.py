"""An arm against the baseline: pairs of seeds at common steps. Numbers only; verdict.py puts them into words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from repa_eval.reports.arms import Arm, seed_of
from repa_eval.reports.frames import Group, Panel, Points, clock, interpolate, series
from repa_eval.reports.words import direction
from repa_eval.results import Row


@dataclass(frozen=True)
class Comparison:
    """One arm against another in one group, over all pairs of seeds."""

    group: Group
    arm: Arm
    other: Arm
    seeds: int  # pairs compared
    points: int  # evaluation points, summed over the pairs
    better: int  # points at which the arm is better
    worse: int
    ratio: float | None  # geometric mean of arm / other; None if a value is not positive
    ratios: tuple[float | None, ...]  # the same for every pair of seeds
    lasting: float | None  # step from which the arm is better at every later evaluation, in every pair
    first: tuple[float, float, float]  # step, mean of the arm, mean of the other
    last: tuple[float, float, float]

    @property
    def verdict(self) -> str:
        """Return "better", "worse" or "mixed": the majority of the points and the mean must agree."""
        gain = None if self.ratio is None else self.ratio < 1
        if self.ratio is not None and direction(self.group.metric) == "higher":
            gain = self.ratio > 1
        if 2 * self.better > self.points and gain is not False:
            return "better"
        return "worse" if 2 * self.worse > self.points and gain is not True else "mixed"


@dataclass(frozen=True)
class Reach:
    """When an arm first has the other's last value."""

    target: float
    step: float | None  # mean over the pairs, interpolated between evaluations; None if never in some pair
    last_step: float
    reached: int
    seeds: int
    seconds: tuple[float, float] | None  # of the arm at that step, of the other at its end


def compare(panel: Panel, rows: Sequence[Row], arm: Arm, other: Arm) -> Comparison | None:
    """Return the comparison of two arms in the panel's group; None without a common step."""
    better_sign = -1.0 if direction(panel.group.metric) == "lower" else 1.0
    pairs = []
    for own, reference in paired(panel.group, rows, arm, other):
        base = dict(reference)
        common = [(x, y, base[x]) for x, y in own if x in base]
        if common:
            pairs.append(common)
    if not pairs:
        return None
    flat = [point for pair in pairs for point in pair]
    signs = [better_sign * (own - base) for _, own, base in flat]
    return Comparison(
        group=panel.group,
        arm=arm,
        other=other,
        seeds=len(pairs),
        points=len(flat),
        better=sum(sign > 0 for sign in signs),
        worse=sum(sign < 0 for sign in signs),
        ratio=_ratio(flat),
        ratios=tuple(_ratio(pair) for pair in pairs),
        lasting=_lasting(pairs, better_sign),
        first=_means(pairs, 0),
        last=_means(pairs, -1),
    )


def paired(group: Group, rows: Sequence[Row], arm: Arm, other: Arm) -> list[tuple[Points, Points]]:
    """Return the curves of those runs of two arms that share their seed."""
    partners = {seed_of(run, other.name): run for run in other.runs}
    result = []
    for run in arm.runs:
        partner = partners.get(seed_of(run, arm.name))
        if partner is not None:
            result.append((series(rows, group, run), series(rows, group, partner)))
    return result


def _ratio(points: Sequence[tuple[float, float, float]]) -> float | None:
    if any(own <= 0 or base <= 0 for _, own, base in points):
        return None
    return math.exp(sum(math.log(own / base) for _, own, base in points) / len(points))


def _lasting(pairs: Sequence[Sequence[tuple[float, float, float]]], sign: float) -> float | None:
    starts = []
    for pair in pairs:
        start = None
        for step, own, base in reversed(pair):
            if sign * (own - base) <= 0:
                break
            start = step
        if start is None:
            return None
        starts.append(start)
    return max(starts)


def _means(pairs: Sequence[Sequence[tuple[float, float, float]]], place: int) -> tuple[float, float, float]:
    points = [pair[place] for pair in pairs]
    count = len(points)
    return (points[0][0], sum(point[1] for point in points) / count, sum(point[2] for point in points) / count)


def reach(panel: Panel, rows: Sequence[Row], timing: Sequence[Row], arm: Arm, other: Arm) -> Reach | None:
    """Return when the arm first has the last value of the other; None if nothing can be compared."""
    lower = direction(panel.group.metric) == "lower"
    targets, steps, lasts, seconds = [], [], [], []
    partners = {seed_of(run, other.name): run for run in other.runs}
    for run in arm.runs:
        partner = partners.get(seed_of(run, arm.name))
        own = series(rows, panel.group, run)
        base = series(rows, panel.group, partner) if partner is not None else ()
        if partner is None or not own or not base:
            continue
        last, target = base[-1]
        step = crossing(own, target, lower=lower)
        targets.append(target)
        lasts.append(last)
        if step is not None:
            steps.append(step)
            times = interpolate(clock(timing, run), step), interpolate(clock(timing, partner), last)
            seconds.append(times if None not in times else None)
    if not targets:
        return None
    complete = len(steps) == len(targets)
    return Reach(
        target=_average(targets),
        step=_average(steps) if complete else None,
        last_step=_average(lasts),
        reached=len(steps),
        seeds=len(targets),
        seconds=_seconds(seconds) if complete else None,
    )


def _seconds(pairs: Sequence[tuple[float | None, float | None] | None]) -> tuple[float, float] | None:
    known = [(one[0], one[1]) for one in pairs if one is not None and one[0] is not None and one[1] is not None]
    if not known or len(known) < len(pairs):
        return None
    return (_average([own for own, _ in known]), _average([base for _, base in known]))


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


def headline_panel(panels: Sequence[Panel]) -> Panel | None:
    """Return the panel that decides the summary: most arms first, then the metrics' reading order, then most points."""
    judged = [panel for panel in panels if direction(panel.group.metric)]
    if not judged:
        return None
    most = max(len(panel.curves) for panel in judged)
    widest = [panel for panel in judged if len(panel.curves) == most]
    same = [panel for panel in widest if panel.group.metric == widest[0].group.metric]
    return max(same, key=lambda panel: max((len(seed) for curve in panel.curves for seed in curve.seeds), default=0))
