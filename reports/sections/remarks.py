"""The notes recorded with numbers, e.g. that n is small for a metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from repa_eval.interfaces.section import section
from repa_eval.reports.numbers.words import plural
from repa_eval.reports.page import Page
from repa_eval.results import Row


@section(order=120, anchor="remarks", title="Notes recorded with the numbers", name="Notes")
def build(page: Page) -> dict[str, Any] | None:
    """Return every note once."""
    found = remarks(page.rows)
    return {"remarks": found} if found else None


def remarks(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return (where, note) for the notes of numbers; a note that is JSON (a confusion) is for programs and left out."""
    grouped: dict[tuple[str, str], int] = {}
    for row in rows:
        if row.note and row.value is not None and not row.note.startswith("{"):
            grouped[row.metric, row.note] = grouped.get((row.metric, row.note), 0) + 1
    return [(f"{metric}, {plural(count, 'value')}", note) for (metric, note), count in grouped.items()]
