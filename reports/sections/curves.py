"""Frames drawn: sample quality and training curves as figures with captions, ready for the template."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from repa_eval.reports.drawing import figures
from repa_eval.reports.drawing.figure import SMALL, STEP, Figure, Ids
from repa_eval.reports.numbers.frames import Group, Panel, against_seconds, split
from repa_eval.reports.numbers.protocols import Records, difference, field
from repa_eval.reports.words import axis, direction, meaning, number
from repa_eval.results import Row


def quality(panel: Panel, ids: Ids, records: Records, *, xlabel: str = STEP, width: float = SMALL) -> Figure:
    """Return a metric of sample quality over steps or seconds; `width` in inches."""
    log = direction(panel.group.metric) == "lower"
    with figures.canvas(width, 0.64 * width) as (figure, ax):
        figures.lines(panel, ax, xlabel=xlabel, log=log)
        svg = figures.svg(figure, prefix=ids.next())
    text = conditions(panel.group, records)
    text += " Logarithmic axis." if log and not panel.levels else ""
    text += "".join(f" Dotted: {number(one.value)}, the value of {one.n} real images." for one in panel.levels)
    return Figure(svg, panel.group.metric, text, spoken(panel, xlabel))


def spoken(panel: Panel, xlabel: str) -> str:
    """Return what a screen reader says of curves."""
    parts = []
    for curve in panel.curves:
        points = curve.mean or next(iter(curve.seeds), ())
        if points:
            parts.append(f"{curve.arm.name} from {number(points[0][1])} to {number(points[-1][1])}")
    return f"{panel.group.metric} over {xlabel}: {'; '.join(parts)}"


def conditions(group: Group, records: Records) -> str:
    """Return one line on what a group's numbers were measured with."""
    extractor = field(records, group.protocol, "extractor")
    teacher = field(records, group.protocol, "teacher")
    steps = field(records, group.protocol, "num_steps")
    parts = [f"n = {group.n}" if group.n else "", f"extractor {extractor}" if extractor else ""]
    parts += [f"teacher {teacher}" if teacher else "", f"{steps} sampling steps" if steps and not teacher else ""]
    parts += [f"{group.weights} weights" if group.weights and group.weights != "ema" else ""]
    text = ", ".join(filter(None, parts))
    return f"{text}." if text else ""


def seconds(
    panels: Sequence[Panel], rows: Sequence[Row], timing: Sequence[Row], ids: Ids, records: Records
) -> list[Figure]:
    """Return the distances over training seconds; nothing for runs without a clock."""
    result = []
    for panel in panels:
        if direction(panel.group.metric) != "lower":
            continue
        moved = against_seconds(panel, rows, timing)
        if moved is not None:
            result.append(quality(moved, ids, records, xlabel="training seconds"))
    return result


def protocol_notes(rows: Iterable[Row], records: Records) -> list[str]:
    """Return a sentence for every metric that was measured under several protocols."""
    protocols: dict[str, list[str | None]] = {}
    for group in sorted(split(rows), key=Group.order):
        known = protocols.setdefault(group.metric, [])
        if group.protocol not in known:
            known.append(group.protocol)
    by_text: dict[tuple[int, str], list[str]] = {}
    for metric, found in protocols.items():
        if len(found) > 1:
            by_text.setdefault((len(found), difference(found, records)), []).append(metric)
    return [
        f"{', '.join(metrics)}: measured under {count} protocols, which differ in {fields}; never drawn in one curve."
        for (count, fields), metrics in by_text.items()
    ]


def training(panels: Sequence[Panel], ids: Ids) -> list[Figure]:
    """Return the training curves."""
    result = []
    for panel in panels:
        metric = panel.group.metric
        with figures.canvas(SMALL, 0.64 * SMALL) as (figure, ax):
            figures.lines(panel, ax, xlabel=STEP, ylabel=axis(metric), dots=False, log=metric == "grad_norm")
            svg = figures.svg(figure, prefix=ids.next())
        result.append(
            Figure(svg, metric, f"{meaning(metric).capitalize()}." if meaning(metric) else "", spoken(panel, STEP))
        )
    return result
