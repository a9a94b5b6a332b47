"""Rows as text tables and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import click

from repa_eval.console.options import RowsOptions
from repa_eval.errors import one_line
from repa_eval.results import Row, append_changed, records_of

LONGEST_CELL = 400  # letters


def deliver(rows: Sequence[Row], output: RowsOptions, *, show: Callable[[Sequence[Row]], str]) -> None:
    """Append rows to a table if asked for, then print them: as JSON, or as the lines that `show` writes.

    Commands call it as soon as they have measured: what they draw and write besides may fail.
    """
    if output.rows is not None:
        append_changed(output.rows, rows)
    if output.as_json:
        notes = sorted({row.note for row in rows if row.note and not row.note.startswith("{")})  # {: a confusion
        click.echo(
            json.dumps({"rows": [row.columns() for row in rows], "protocols": records_of(rows), "warnings": notes})
        )
    else:
        click.echo("\n".join(map(_printable, show(rows).split("\n"))))


def table(header: Sequence[str], body: Sequence[Sequence[object]]) -> str:
    """Return lines with aligned columns."""
    cells = [[one_line(str(cell), LONGEST_CELL) for cell in line] for line in (header, *body)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


def layer_table(rows: Sequence[Row], aligned: int | None) -> str:
    """Return a table per metric: a line per timestep, a column per layer, the best layer of a line marked."""
    records = records_of(rows)
    groups: dict[tuple[str, str | None], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.metric, row.protocol), []).append(row)
    blocks = []
    for (metric, protocol), members in groups.items():
        teacher = records.get(protocol or "", {}).get("teacher")
        layers = sorted({row.layer for row in members if row.layer is not None})
        body = []
        for t in sorted({row.timestep for row in members if row.timestep is not None}):
            values = {row.layer: row.value for row in members if row.timestep == t}
            finite = [value for value in values.values() if value is not None]
            best = max(finite) if finite and len(layers) > 1 else None
            errors = {row.layer: row.stderr for row in members if row.timestep == t}
            body.append([f"{t:g}", *(_cell(values.get(layer), best, errors.get(layer)) for layer in layers)])
        header = ["t", *(f"block {layer}{'*' if layer == aligned else ''}" for layer in layers)]
        title = f"{metric}{f' with {teacher}' if teacher else ''}, n={members[0].n}, t=1 is noise"
        blocks.append(f"{title}{', * aligned block' if aligned else ''}\n{table(header, body)}")
    return "\n\n".join(blocks)


def _printable(line: str) -> str:
    """Return a line whose spaces are kept, without control characters."""
    return line if line.isprintable() else one_line(line)


def _cell(value: float | None, best: float | None, stderr: float | None) -> str:
    if value is None:
        return "-"
    spread = "" if stderr is None else f"+-{stderr:.3f}"
    return f"{value:.3f}{spread}{'<' if best is not None and value == best else ' '}"
