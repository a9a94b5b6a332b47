"""Curves of one metric as figures with a caption, as several sections show them."""

from __future__ import annotations

from repa_eval.reports.drawing import figures
from repa_eval.reports.drawing.figure import SMALL, STEP, Figure
from repa_eval.reports.numbers.frames import Panel
from repa_eval.reports.numbers.protocols import Records, conditions
from repa_eval.reports.numbers.words import number


def quality(panel: Panel, records: Records, *, xlabel: str = STEP, width: float = SMALL) -> Figure:
    """Return a metric of sample quality over steps or seconds; `width` in inches."""
    log = panel.direction == "lower"
    with figures.canvas(width, 0.64 * width) as (figure, ax):
        figures.lines(panel, ax, xlabel=xlabel, log=log)
        svg = figures.svg(figure)
    text = conditions(panel.group, records)
    text += " Logarithmic axis." if log and not panel.levels else ""
    text += "".join(f" Dotted: {number(one.value)}, the value of {one.n} real images." for one in panel.levels)
    return Figure(svg, panel.group.metric, text, alt_text(panel, xlabel))


def alt_text(panel: Panel, xlabel: str) -> str:
    """Return what a screen reader says of curves."""
    parts = []
    for curve in panel.curves:
        points = curve.mean or next(iter(curve.seeds), ())
        if points:
            parts.append(f"{curve.arm.name} from {number(points[0][1])} to {number(points[-1][1])}")
    return f"{panel.group.metric} over {xlabel}: {'; '.join(parts)}"
