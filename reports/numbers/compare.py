"""An arm against the baseline: pairs of seeds at common steps. Numbers only; the summary puts them into words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from repa_eval.reports.numbers.arms import Arm, aligned_block, arms_of
from repa_eval.reports.numbers.differences import differences
from repa_eval.reports.numbers.frames import SECONDS, Group, Panel, is_curve_row, maps_of, quality_panels, split
from repa_eval.reports.numbers.pairs import Spread, paired, spread
from repa_eval.reports.numbers.time_to_reach import time_to_reach
from repa_eval.reports.numbers.words import Metrics
from repa_eval.results import Row

EARLY = (200, 1000)  # steps of the restricted mean ratio: the start is noise, the end is near the floor
FEWEST = 3  # evaluations that must lie between them


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
    ratio: float | None  # geometric mean of the pairs' ratios; None if a value is not positive
    ratios: tuple[float | None, ...]  # of every pair: geometric mean over its points of arm / other
    lasting: float | None  # step from which the arm is better at every later evaluation, in every pair
    first: tuple[float, float, float]  # step, mean of the arm, mean of the other
    last: tuple[float, float, float]  # both at a step that all pairs have, if there is one
    fewest: int  # points of the pair that has the fewest
    direction: str | None = None  # which values are better: "lower" or "higher"

    @property
    def spread(self) -> Spread | None:
        """Return the ratio over the pairs; None if a value is not positive."""
        known = [ratio for ratio in self.ratios if ratio is not None]
        return spread(known, geometric=True) if len(known) == len(self.ratios) else None

    @property
    def outcome(self) -> str:
        """Return "better", "worse" or "mixed": the majority of the points and the mean must agree."""
        gain = None if self.ratio is None else self.ratio < 1
        if self.ratio is not None and self.direction == "higher":
            gain = self.ratio > 1
        if 2 * self.better > self.points and gain is not False:
            return "better"
        return "worse" if 2 * self.worse > self.points and gain is not True else "mixed"


Pair = Sequence[tuple[float, float, float]]  # step, value of the arm, value of the other


def compare(panel: Panel, rows: Sequence[Row], arm: Arm, other: Arm) -> Comparison | None:
    """Return the comparison of two arms in the panel's group; None without a common step."""
    better_sign = -1.0 if panel.direction == "lower" else 1.0
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
    ratios = tuple(_ratio(pair) for pair in pairs)
    whole = spread([ratio for ratio in ratios if ratio is not None], geometric=True)
    return Comparison(
        group=panel.group,
        arm=arm,
        other=other,
        seeds=len(pairs),
        points=len(flat),
        better=sum(sign > 0 for sign in signs),
        worse=sum(sign < 0 for sign in signs),
        ratio=whole.mean if whole is not None and None not in ratios else None,
        ratios=ratios,
        lasting=_lasting(pairs, better_sign),
        first=_means(pairs, 0),
        last=_means(pairs, -1),
        fewest=min(map(len, pairs)),
        direction=panel.direction,
    )


def early(panel: Panel, rows: Sequence[Row], arm: Arm, other: Arm) -> Comparison | None:
    """Return the comparison over steps 200 to 1000 alone; None where a pair has fewer than 3 evaluations there."""
    inside = [row for row in rows if row.step is not None and EARLY[0] <= row.step <= EARLY[1]]
    result = compare(panel, inside, arm, other)
    return result if result is not None and result.fewest >= FEWEST else None


def _ratio(points: Pair) -> float | None:
    if any(own <= 0 or base <= 0 for _, own, base in points):
        return None
    return math.exp(sum(math.log(own / base) for _, own, base in points) / len(points))


def _lasting(pairs: Sequence[Pair], sign: float) -> float | None:
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


def _means(pairs: Sequence[Pair], place: int) -> tuple[float, float, float]:
    """Return the first or last step that all pairs have, with both means; of the first pair if they share none."""
    common = sorted(set.intersection(*({point[0] for point in pair} for pair in pairs)))
    step = common[place] if common else pairs[0][place][0]
    points = [point for pair in (pairs if common else pairs[:1]) for point in pair if point[0] == step]
    count = len(points)
    return (step, sum(point[1] for point in points) / count, sum(point[2] for point in points) / count)


def headline_panel(panels: Sequence[Panel]) -> Panel | None:
    """Return the panel that decides the summary: most arms first, then the metrics' reading order, then most points."""
    judged = [panel for panel in panels if panel.direction]
    if not judged:
        return None
    most = max(len(panel.curves) for panel in judged)
    widest = [panel for panel in judged if len(panel.curves) == most]
    same = [panel for panel in widest if panel.group.metric == widest[0].group.metric]
    return max(same, key=lambda panel: max((len(seed) for curve in panel.curves for seed in curve.seeds), default=0))


def summary(
    rows: Sequence[Row], curves: Sequence[Row], runs: Mapping[str, Mapping[str, Any]], metrics: Metrics
) -> list[dict[str, Any]]:
    """Return every arm against the baseline as a flat table, the numbers that the report's summary speaks of.

    Arguments as of render(), `metrics` wrapped in Metrics. One dict a number, baseline and treated being names of arms:

    - quantity: what was compared, e.g. "mean ratio of fd_digits, steps 200 to 1000, n = 512"
    - kind: "ratio" (treated / baseline), "share" (of the baseline's steps or seconds) or "difference" (of the two)
    - value: mean over the pairs of seeds (geometric for ratios); None where some pair has none, e.g. never arrives
    - low, high: range over the pairs; sd: standard deviation, None for one pair; seeds: number of pairs
    - baseline_value, treated_value: means of the two, where the quantity is about one step or one block
    - protocol: hash of the numbers' record, the same on both sides
    """
    arms = arms_of([*rows, *curves], runs)
    baseline = next((arm for arm in arms if arm.role == "baseline"), None)
    if baseline is None:
        return []
    timing = [row for row in (*curves, *rows) if row.metric == SECONDS]
    panel = headline_panel(quality_panels(rows, arms, metrics))
    maps, block = maps_of(rows, arms), aligned_block(arms)
    result: list[dict[str, Any]] = []
    for arm in (arm for arm in arms if arm is not baseline):
        lines = _along(panel, rows, timing, arm, baseline) if panel is not None else []
        lines += _ends(rows, arm, baseline, metrics)
        for found in differences(maps, arm, baseline, arm.aligned_layer or block or 0):
            times = ", ".join(f"{t:g}" for t in found.timesteps)
            name = f"{found.group.metric} at block {found.layer}, mean over t = {times}{_count(found.group)}"
            base, own = _average(found.base), _average(found.own)
            lines.append(_line(name, "difference", found.gain, found.group, baseline_value=base, treated_value=own))
        result += [{**line, "baseline": baseline.name, "treated": arm.name} for line in lines]
    return result


def _along(panel: Panel, rows: Sequence[Row], timing: Sequence[Row], arm: Arm, baseline: Arm) -> list[dict[str, Any]]:
    """Return the lines about whole curves: mean ratios, and when the baseline's last value is reached."""
    group, metric = panel.group, panel.group.metric
    lines = []
    whole, start = compare(panel, rows, arm, baseline), early(panel, rows, arm, baseline)
    if whole is not None:
        lines.append(_line(f"mean ratio of {metric}{_count(group)}", "ratio", whole.spread, group, seeds=whole.seeds))
    if start is not None:
        name = f"mean ratio of {metric}, steps {EARLY[0]} to {EARLY[1]}{_count(group)}"
        lines.append(_line(name, "ratio", start.spread, group, seeds=start.seeds))
    arrival = time_to_reach(panel, rows, timing, arm, baseline)
    if arrival is not None:
        goal = f"to the baseline's last {metric}, as a share of its"
        shares = (("steps", arrival.shares), ("training seconds", arrival.second_shares))
        for unit, values in shares:
            found = spread(values) if len(values) == arrival.seeds else None
            lines.append(_line(f"{unit} {goal} {unit}{_count(group)}", "share", found, group, seeds=arrival.seeds))
    return lines


def _ends(rows: Sequence[Row], arm: Arm, baseline: Arm, metrics: Metrics) -> list[dict[str, Any]]:
    """Return a line for every group of sample quality: the two arms at the last step that all pairs have."""
    lines = []
    for group, members in sorted(
        split(row for row in rows if is_curve_row(row)).items(), key=lambda item: item[0].order()
    ):
        panel = Panel(group, (), direction=metrics.direction(group.metric))
        result = compare(panel, members, arm, baseline) if panel.direction else None
        if result is None:
            continue
        step, own, base = result.last
        last = [row for row in members if row.step == step]
        end = compare(panel, last, arm, baseline)
        kind = "ratio" if panel.direction == "lower" else "difference"
        if end is None:
            continue
        found = end.spread
        if kind == "difference":
            found = spread([a[0][1] - b[0][1] for a, b in paired(group, last, arm, baseline) if a and b])
        sides = {"baseline_value": base, "treated_value": own}
        lines.append(
            _line(f"{group.metric} at step {step:.0f}{_count(group)}", kind, found, group, seeds=end.seeds, **sides)
        )
    return lines


def _line(
    quantity: str,
    kind: str,
    found: Spread | None,
    group: Group,
    *,
    seeds: int | None = None,
    baseline_value: float | None = None,
    treated_value: float | None = None,
) -> dict[str, Any]:
    return {
        "quantity": quantity,
        "kind": kind,
        "baseline": "",
        "treated": "",
        "value": found.mean if found else None,
        "low": found.low if found else None,
        "high": found.high if found else None,
        "sd": found.sd if found else None,
        "seeds": found.seeds if found else seeds,
        "baseline_value": baseline_value,
        "treated_value": treated_value,
        "protocol": group.protocol,
    }


def _count(group: Group) -> str:
    return f", n = {group.n}" if group.n else ""


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values)
