"""Final values of every run: a line for each metric and protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from repa_eval.interfaces.section import section
from repa_eval.reports.numbers.arms import Arm, run_name
from repa_eval.reports.numbers.frames import SECONDS, Group, clock, in_order, is_curve_row, split, step_name
from repa_eval.reports.numbers.pairs import spread
from repa_eval.reports.numbers.words import MINUS, Metrics, listing, number, plural
from repa_eval.reports.page import Page
from repa_eval.results import Row

NOT_MEASURED = "not measured"


@section(order=20, anchor="finals", title="Final values")
def build(page: Page) -> dict[str, Any]:
    """Return the table; its step where all arms end at the same one."""
    ends = {step for step in last_steps(page.rows, page.arms).values() if step}
    return {
        "lines": final_table(page.rows, page.arms, page.timing, page.metrics),
        "step": ends.pop() if len(ends) == 1 else None,
    }


@dataclass(frozen=True)
class Cell:
    """One entry of a table: its text, or the reason why there is none."""

    text: str = ""
    detail: str = ""
    reason: str = ""
    best: bool = False
    value: float | None = None


@dataclass(frozen=True)
class Line:
    """One line of the table of final values."""

    metric: str
    better: str
    n: int | None
    weights: str | None
    protocol: str | None
    cells: tuple[Cell, ...]


def final_table(rows: Sequence[Row], arms: Sequence[Arm], timing: Sequence[Row], metrics: Metrics) -> list[Line]:
    """Return a line per metric and protocol with each arm's value at its last step; the best one is marked."""
    quality = [row for row in rows if is_curve_row(row)]
    lasts = last_steps(rows, arms)
    same = len({step for step in lasts.values() if step}) == 1
    lines = []
    for group, members in sorted(split(quality).items(), key=lambda item: item[0].order()):
        cells = tuple(_final(members, arm, lasts[arm.name], name_step=not same) for arm in arms)
        if any(cell.text or cell.reason not in ("", NOT_MEASURED) for cell in cells):
            better = metrics.direction(group.metric)
            # where neither way is better, as for a z-score, a share of the baseline's means nothing
            lines.append(_line(group, _mark(_relative(cells, arms), better) if better else cells, better))
    times = tuple(_time(timing, arm) for arm in arms)
    if any(cell.text for cell in times):
        lines.append(_line(Group(SECONDS, None), times, None))
    return lines


def last_steps(rows: Sequence[Row], arms: Sequence[Arm]) -> dict[str, int | None]:
    """Return the last step at which each arm's samples were judged; None where no step is recorded, or no sample."""
    quality = [row for row in rows if is_curve_row(row)]
    return {
        arm.name: max((row.step for row in quality if run_name(row) in arm.runs), key=in_order, default=None)
        for arm in arms
    }


def _line(group: Group, cells: tuple[Cell, ...], better: str | None) -> Line:
    return Line(group.metric, better or "", group.n, group.weights, group.protocol, cells)


def _final(rows: Sequence[Row], arm: Arm, step: int | None, *, name_step: bool) -> Cell:
    every = [row for row in rows if run_name(row) in arm.runs]
    own = [row for row in every if row.step == step] or [row for row in every if row.step is None]
    step = own[0].step if own else step
    values = [row.value for row in own if row.value is not None]
    if not values:
        notes = listing(dict.fromkeys(row.note for row in own if row.note))
        return Cell(reason=(notes or "no value") if own else NOT_MEASURED)
    parts = []
    stderrs = [row.stderr for row in own if row.stderr is not None]
    seeds = spread(values)
    if seeds is not None and seeds.sd is not None:
        parts.append(f"± {number(seeds.sd, 2)} over {plural(seeds.seeds, 'seed')}")
    elif stderrs:
        parts.append(f"± {number(stderrs[0], 2)} s.e.")
    parts += [step_name(step)] if name_step or step is None else []
    mean = sum(values) / len(values)
    return Cell(number(mean, fixed=True), ", ".join(parts), value=mean)


def _relative(cells: tuple[Cell, ...], arms: Sequence[Arm]) -> tuple[Cell, ...]:
    """Add what each arm's value is relative to the baseline's, in per cent."""
    base = cells[0].value if arms and arms[0].role == "baseline" else None
    if base is None or base <= 0:
        return cells
    shown = [cells[0]]
    for cell in cells[1:]:
        change = "" if cell.value is None else f"{100 * (cell.value / base - 1):+.1f} %".replace("-", MINUS)
        shown.append(replace(cell, detail=", ".join(filter(None, (change, cell.detail)))))
    return tuple(shown)


def _time(timing: Sequence[Row], arm: Arm) -> Cell:
    ends = [times[-1] for run in arm.runs if (times := clock(timing, run))]
    if not ends:
        return Cell(reason=NOT_MEASURED)
    step, seconds = ends[0][0], sum(end[1] for end in ends) / len(ends)
    detail = f"{number(1000 * seconds / step)} ms a step" if step else ""
    return Cell(number(seconds, fixed=True), detail, value=seconds)


def _mark(cells: tuple[Cell, ...], better: str) -> tuple[Cell, ...]:
    values = [cell.value for cell in cells if cell.value is not None]
    if len(values) < 2:
        return cells
    best = min(values) if better == "lower" else max(values)
    return tuple(replace(cell, best=cell.value == best) for cell in cells)
