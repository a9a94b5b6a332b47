"""Merged encoders: what a merge keeps, what it saves, and what of the original teacher is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from repa_eval.reports.numbers.arms import run_name
from repa_eval.reports.numbers.frames import is_merge_row
from repa_eval.reports.numbers.protocols import Records, field
from repa_eval.reports.numbers.words import MINUS, listing, number
from repa_eval.results import Row

FORMS = {"original": "original", "training": "training form", "merged": "merged"}
PROBES = {"probe_accuracy": "linear probe", "knn_accuracy": "k-NN"}
ALIGNMENT = {"cknna_merged": "CKNNA", "cka_merged": "CKA"}
COLUMNS = {"ms_per_image": "ms per image", "num_parameters": "parameters", **PROBES}
Key = tuple[str, int | None]


@dataclass(frozen=True)
class Merge:
    """One merged checkpoint of a run."""

    run: str
    step: int | None
    sentences: tuple[str, ...]
    columns: tuple[str, ...]
    lines: tuple[tuple[str, tuple[str, ...]], ...]  # form, its cells
    protocols: tuple[str, ...]
    known: Mapping[Key, Row]  # the rows behind it, by metric and block


def merges(rows: Sequence[Row], records: Records) -> list[Merge]:
    """Return a Merge for every run and step that was merged, from what was measured last."""
    found: dict[tuple[str, int | None, str | None], list[Row]] = {}
    for row in rows:
        if is_merge_row(row):
            found.setdefault((run_name(row), row.step, row.weights), []).append(row)
    return [_merge(run, step, own, records) for (run, step, _), own in found.items()]


def lead_of(found: Sequence[Merge]) -> str:
    """Return the first sentences of a report that holds merged encoders only: speed and accuracy together."""
    return " ".join(f"{one.run}, merged: {' '.join(one.sentences[1:])}" for one in found)


def _merge(run: str, step: int | None, rows: Sequence[Row], records: Records) -> Merge:
    known: dict[Key, Row] = {(row.metric, row.layer): row for row in _of_one_protocol(rows)}
    columns = [name for name in COLUMNS if any(key[0].startswith(f"{name}_") for key in known)]
    lines = []
    for form, name in FORMS.items():
        cells = tuple(_cell(column, known.get((f"{column}_{form}", None))) for column in columns)
        if any(cells):
            lines.append((name, cells))
    return Merge(
        run=run,
        step=step,
        sentences=tuple(_sentences(known, records)),
        columns=tuple(COLUMNS[name] for name in columns),
        lines=tuple(lines),
        protocols=tuple(dict.fromkeys(row.protocol for row in known.values() if row.protocol)),
        known=known,
    )


def _of_one_protocol(rows: Sequence[Row]) -> list[Row]:
    """Return, of each family of metrics that is read together, the rows that share the last protocol."""
    last: dict[str, str | None] = {}
    for row in rows:
        last[_family(row)] = row.protocol
    return [row for row in rows if row.protocol == last[_family(row)]]


def _family(row: Row) -> str:
    if row.metric.startswith(("ms_per_image", "speedup")):
        return "speed"
    return "alignment" if row.metric in ALIGNMENT else row.metric


def _cell(column: str, row: Row | None) -> str:
    if row is None or row.value is None:
        return ""
    if column == "num_parameters":
        return f"{row.value / 1e6:.2f} M"
    error = "" if row.stderr is None else f"\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{number(row.stderr, 2)}"
    return f"{number(row.value, fixed=True)}{error}"


def _value(known: Mapping[Key, Row], metric: str) -> float | None:
    row = known.get((metric, None))
    return None if row is None else row.value


def _sentences(known: Mapping[Key, Row], records: Records) -> list[str]:
    """Return what the merge changes, what it saves and what the conversion cost: a trade-off, in that order."""
    apart = [value for kind in ("random", "real") if (value := _value(known, f"merge_difference_{kind}")) is not None]
    told = []
    if apart:
        told.append(
            f"The merged form equals the training form up to rounding: relative difference {number(max(apart), 2)}."
        )
    speed = known.get(("speedup", None))
    against = field(records, speed.protocol if speed else None, "original") or "the original"
    ratios = {against: _value(known, "speedup"), "the training form": _value(known, "speedup_training")}
    fast = [f"{value:.2f} times the speed of {name}" for name, value in ratios.items() if value is not None]
    if fast:
        told.append(f"{listing(fast)}.")
    changes = []
    for metric, name in PROBES.items():
        before, after = _value(known, f"{metric}_original"), _value(known, f"{metric}_merged")
        if before is not None and after is not None:
            points = f"{100 * (after - before):+.1f}".replace("-", MINUS)
            changes.append(f"{name} {number(after, fixed=True)} for {number(before, fixed=True)} ({points} points)")
    if changes:
        errors = [row.stderr for (metric, _), row in known.items() if metric.startswith(tuple(PROBES)) and row.stderr]
        spread = f"; the standard error of each is {number(max(errors), 2)}" if errors else ""
        told.append(f"On unseen images: {listing(changes)}{spread}.")
    return told
