"""Merged encoders: what the merge changes, what it saves, and how well its blocks align with the original's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from repa_eval.interfaces.section import section
from repa_eval.reports.drawing import figures
from repa_eval.reports.drawing.figure import SMALL, Figure
from repa_eval.reports.numbers.arms import Arm
from repa_eval.reports.numbers.frames import Curve, Group, Panel, Points
from repa_eval.reports.numbers.merged import ALIGNMENT, FORMS, Key, merges
from repa_eval.reports.numbers.protocols import Records, field
from repa_eval.reports.numbers.words import number, plural
from repa_eval.reports.page import Page
from repa_eval.results import Row


@section(order=50, anchor="merged", title="Merged encoders")
def build(page: Page) -> dict[str, Any] | None:
    """Return every merge with its figures: time per image, and alignment by block."""
    found = merges(page.rows, page.records)
    drawn = [[_times(one.known, page.records), _alignment(one.known, one.run)] for one in found]
    shown = [[figure for figure in row if figure is not None] for row in drawn]
    return {"merges": list(zip(found, shown, strict=True))} if found else None


def _times(known: Mapping[Key, Row], records: Records) -> Figure | None:
    """Return milliseconds per image of the forms as bars."""
    found = {form: known.get((f"ms_per_image_{form}", None)) for form in FORMS}
    bars = [(FORMS[form], row.value) for form, row in found.items() if row is not None and row.value is not None]
    if not bars:
        return None
    with figures.canvas(SMALL, 0.4 * SMALL) as (figure, ax):
        figures.bars(bars, ax, xlabel="ms per image (lower is faster)")
        svg = figures.svg(figure)
    protocol = next(row.protocol for row in found.values() if row is not None)
    facts = {name: field(records, protocol, name) for name in ("device", "threads", "batch_size", "original")}
    parts = [facts["device"], plural(int(facts["threads"]), "thread") if facts["threads"] else None]
    parts += [f"batch {facts['batch_size']}" if facts["batch_size"] else None]
    parts += [f"original: {facts['original']}" if facts["original"] else None]
    rounds = next(row.n for row in found.values() if row is not None)
    caption = f"Medians of {rounds} rounds, the forms taking turns; {', '.join(filter(None, parts))}."
    label = "; ".join(f"{name} {number(value)} ms" for name, value in bars)
    return Figure(svg, "Time per image", caption, label)


def _alignment(known: Mapping[Key, Row], run: str) -> Figure | None:
    """Return how well each merged block aligns with the original's, by block."""
    curves = []
    for place, (metric, name) in enumerate(ALIGNMENT.items()):
        own = [row for row in known.values() if row.metric == metric and row.value is not None]
        points: Points = tuple(sorted((float(row.layer or 0), row.value or 0.0) for row in own))
        if points:
            curves.append(Curve(Arm(name, "treated", (run,), ("a1", "k1")[place]), points, (points,)))
    if not curves:
        return None
    panel = Panel(Group("merged against original", None), tuple(curves))
    with figures.canvas(SMALL, 0.64 * SMALL) as (figure, ax):
        figures.blocks(panel, ax, xlabel="block", ylabel="alignment (1: identical)")
        svg = figures.svg(figure)
    alt_text = "; ".join(f"{one.arm.name} {', '.join(number(y) for _, y in one.mean)}" for one in curves)
    n = next(row.n for row in known.values() if row.metric in ALIGNMENT)
    caption = f"Mean patch tokens of {n} unseen images: each block of the merged encoder against the original's."
    return Figure(svg, "Merged against original, by block", caption, alt_text)
