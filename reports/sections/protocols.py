"""Protocol and environment: what the numbers were measured with, and what each run says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from repa_eval.interfaces.section import section
from repa_eval.reports.numbers.protocols import families, flat, shorten, without_record
from repa_eval.reports.page import Page


@section(order=110, anchor="protocols", title="Protocol and environment", name="Protocol")
def build(page: Page) -> dict[str, Any]:
    """Return the protocols by kind, and run.json of every run."""
    names, lines = runs_table(page.runs)
    return {
        "families": families(page.rows, page.records),
        "unrecorded": without_record(page.rows, page.records),
        "names": names,
        "lines": lines,
    }


def runs_table(runs: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Return the names of the runs, and (field, its value in every run) for each field of their run.json."""
    tables = {name: flat(facts) for name, facts in runs.items()}
    fields = dict.fromkeys(field for table in tables.values() for field in table)
    return list(tables), [
        (field, [shorten(table.get(field, ""), 400) for table in tables.values()]) for field in fields
    ]
