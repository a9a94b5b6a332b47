"""The section on merged encoders: what a merge keeps, what it saves, and what of the original teacher is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from repa_eval.reports.drawing import figures
from repa_eval.reports.drawing.figure import SMALL, Figure, Ids
from repa_eval.reports.numbers.arms import Arm, run_name
from repa_eval.reports.numbers.frames import Curve, Group, Panel, Points, is_merge_row
from repa_eval.reports.numbers.protocols import Records, field
from repa_eval.reports.words import MINUS, listing, number, plural
from repa_eval.results import Row

FORMS = {"original": "original", "training": "training form", "merged": "merged"}
PROBES = {"probe_accuracy": "linear probe", "knn_accuracy": "k-NN"}
LIKENESS = {"cknna_merged": "CKNNA", "cka_merged": "CKA"}
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
    figures: tuple[Figure, ...]
    protocols: tuple[str, ...]


def merges(rows: Sequence[Row], ids: Ids, records: Records) -> list[Merge]:
    """Return a Merge for every run and step that was merged, from what was measured last."""
    found: dict[tuple[str, int | None, str | None], list[Row]] = {}
    for row in rows:
        if is_merge_row(row):
            found.setdefault((run_name(row), row.step, row.weights), []).append(row)
    return [_merge(run, step, own, ids, records) for (run, step, _), own in found.items()]


def lead_of(found: Sequence[Merge]) -> str:
    """Return what a report of merged encoders alone says first: speed and accuracy together."""
    return " ".join(f"{one.run}, merged: {' '.join(one.sentences[1:])}" for one in found)


def without_merged(arms: Sequence[Arm], rows: Sequence[Row]) -> list[Arm]:
    """Return the arms that are no merged encoders, of which other numbers can be asked for."""
    names = {run_name(row) for row in rows if is_merge_row(row)}
    return [arm for arm in arms if not names & set(arm.runs)]


def _merge(run: str, step: int | None, rows: Sequence[Row], ids: Ids, records: Records) -> Merge:
    known: dict[Key, Row] = {(row.metric, row.layer): row for row in _of_one_protocol(rows)}
    columns = [name for name in COLUMNS if any(key[0].startswith(f"{name}_") for key in known)]
    lines = []
    for form, name in FORMS.items():
        cells = tuple(_cell(column, known.get((f"{column}_{form}", None))) for column in columns)
        if any(cells):
            lines.append((name, cells))
    drawn = [_times(known, ids, records), _likeness(known, run, ids)]
    return Merge(
        run=run,
        step=step,
        sentences=tuple(_sentences(known, records)),
        columns=tuple(COLUMNS[name] for name in columns),
        lines=tuple(lines),
        figures=tuple(figure for figure in drawn if figure is not None),
        protocols=tuple(dict.fromkeys(row.protocol for row in known.values() if row.protocol)),
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
    return "likeness" if row.metric in LIKENESS else row.metric


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
            f"The merged form is the training form up to rounding: relative difference {number(max(apart), 2)}."
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


def _times(known: Mapping[Key, Row], ids: Ids, records: Records) -> Figure | None:
    """Return milliseconds per image of the forms as bars."""
    found = {form: known.get((f"ms_per_image_{form}", None)) for form in FORMS}
    bars = [(FORMS[form], row.value) for form, row in found.items() if row is not None and row.value is not None]
    if not bars:
        return None
    with figures.canvas(SMALL, 0.4 * SMALL) as (figure, ax):
        figures.bars(bars, ax, xlabel="ms per image (lower is faster)")
        svg = figures.svg(figure, prefix=ids.next())
    protocol = next(row.protocol for row in found.values() if row is not None)
    facts = {name: field(records, protocol, name) for name in ("device", "threads", "batch_size", "original")}
    parts = [facts["device"], plural(int(facts["threads"]), "thread") if facts["threads"] else None]
    parts += [f"batch {facts['batch_size']}" if facts["batch_size"] else None]
    parts += [f"original: {facts['original']}" if facts["original"] else None]
    rounds = next(row.n for row in found.values() if row is not None)
    caption = f"Medians of {rounds} rounds in which the forms took turns; {', '.join(filter(None, parts))}."
    label = "; ".join(f"{name} {number(value)} ms" for name, value in bars)
    return Figure(svg, "Time per image", caption, label)


def _likeness(known: Mapping[Key, Row], run: str, ids: Ids) -> Figure | None:
    """Return how alike each merged block is to the original's, by block."""
    curves = []
    for place, (metric, name) in enumerate(LIKENESS.items()):
        own = [row for row in known.values() if row.metric == metric and row.value is not None]
        points: Points = tuple(sorted((float(row.layer or 0), row.value or 0.0) for row in own))
        if points:
            curves.append(Curve(Arm(name, "treated", (run,), ("a1", "k1")[place]), points, (points,)))
    if not curves:
        return None
    panel = Panel(Group("merged against original", None), tuple(curves))
    with figures.canvas(SMALL, 0.64 * SMALL) as (figure, ax):
        figures.blocks(panel, ax, xlabel="block", ylabel="likeness (1: the same)")
        svg = figures.svg(figure, prefix=ids.next())
    spoken = "; ".join(f"{one.arm.name} {', '.join(number(y) for _, y in one.mean)}" for one in curves)
    n = next(row.n for row in known.values() if row.metric in LIKENESS)
    caption = f"Mean patch tokens of {n} unseen images: each block of the merged encoder against the original's."
    return Figure(svg, "Merged against original, by block", caption, spoken)
