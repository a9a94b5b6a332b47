"""Sample quality along training: curves over steps and over training seconds, and their values as tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from repa_eval.interfaces.section import section
from repa_eval.reports.drawing import panels
from repa_eval.reports.drawing.figure import Figure
from repa_eval.reports.numbers.frames import Group, Panel, against_seconds, is_curve_row, split
from repa_eval.reports.numbers.protocols import Records, difference
from repa_eval.reports.numbers.words import number
from repa_eval.reports.page import Page
from repa_eval.results import Row


@section(order=30, anchor="quality", title="Sample quality along training", name="Sample quality")
def build(page: Page) -> dict[str, Any] | None:
    """Return a figure for every metric that a run has at two steps or more."""
    if not page.panels:
        return None
    return {
        "figures": [panels.quality(panel, page.records) for panel in page.panels],
        "seconds": seconds(page),
        "notes": protocol_notes([row for row in page.rows if is_curve_row(row)], page.records),
        "values": values(page.panels),
    }


def seconds(page: Page) -> list[Figure]:
    """Return the distances over training seconds; nothing for runs without a clock."""
    lower = (panel for panel in page.panels if panel.direction == "lower")
    moved = (against_seconds(panel, page.rows, page.timing) for panel in lower)
    return [panels.quality(panel, page.records, xlabel="training seconds") for panel in moved if panel is not None]


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
        f"{', '.join(metrics)}: measured under {count} protocols, which differ in {fields}. "
        "Each curve shows one protocol."
        for (count, fields), metrics in by_text.items()
    ]


def values(panels: Sequence[Panel]) -> list[dict[str, Any]]:
    """Return every curve as a table: steps as rows, arms as columns."""
    tables = []
    for panel in panels:
        columns = [dict(curve.mean) for curve in panel.curves]
        steps = sorted({step for column in columns for step in column})
        lines = [(f"{step:.0f}", [number(column.get(step)) for column in columns]) for step in steps]
        tables.append({"group": panel.group, "names": [curve.arm.name for curve in panel.curves], "lines": lines})
    return tables
