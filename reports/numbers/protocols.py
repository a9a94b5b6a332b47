"""Protocol records compared: what a number was measured with, and in which fields two of them differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from repa_eval.reports.numbers.frames import Group, groups_of
from repa_eval.reports.numbers.words import listing
from repa_eval.results import Row

Records = Mapping[str, Mapping[str, Any]]
ABSENT = "—"


def flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return the record as field -> text, in order of the names; nested objects become dotted fields."""
    result: dict[str, str] = {}
    for name, value in sorted(record.items()):
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[prefix + name] = _text(value)
    return result


def _text(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        return ", ".join(_text(item) for item in value)
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def field(records: Records, protocol: str | None, *names: str) -> str | None:
    """Return the first of the named fields that the record fills, as text."""
    record = flat(records.get(protocol or "", {}))
    return next((record[name] for name in names if record.get(name) not in (None, "null", "")), None)


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


def differing(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the fields in which the records are not all equal."""
    tables = [flat(record) for record in records]
    names = dict.fromkeys(name for table in tables for name in table)
    return [name for name in names if len({table.get(name, ABSENT) for table in tables}) > 1]


def difference(protocols: Sequence[str | None], records: Records) -> str:
    """Return "num_samples (512 or 2000) and num_steps (16 or 25)" for protocols that are not the same."""
    known = [records[one] for one in protocols if one is not None and one in records]
    if len(known) < len(protocols):
        return "a record that is missing from protocols.json"
    return listing(f"{name} ({' or '.join(_choices(known, name))})" for name in differing(known)) or "nothing recorded"


def _choices(records: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    return list(dict.fromkeys(shorten(flat(record).get(name, ABSENT)) for record in records))


def shorten(text: str, most: int = 60) -> str:
    """Return the text, cut in the middle if it is long."""
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-most // 2 :]}"


@dataclass(frozen=True)
class Family:
    """The protocols of one kind: the fields they share, and a table of those in which they differ."""

    kind: str
    shared: tuple[tuple[str, str], ...]
    fields: tuple[str, ...]
    lines: tuple[tuple[str, str, str, tuple[str, ...]], ...]  # hash, metrics, runs, value of every differing field


def families(rows: Sequence[Row], records: Records) -> list[Family]:
    """Return the protocols that the rows use, by the kind their record names, in the metrics' reading order."""
    used = dict.fromkeys(group.protocol for group in groups_of(rows) if group.protocol and group.protocol in records)
    kinds: dict[str, list[str]] = {}
    for protocol in filter(None, used):
        kinds.setdefault(str(records[protocol].get("kind", "other")), []).append(protocol)
    return [_family(kind, members, rows, records) for kind, members in kinds.items()]


def _family(kind: str, members: Sequence[str], rows: Sequence[Row], records: Records) -> Family:
    tables = {member: flat(records[member]) for member in members}
    fields = tuple(differing([records[member] for member in members]))
    first = tables[members[0]]
    shared = tuple((name, value) for name, value in first.items() if name not in fields and name != "kind")
    lines = []
    for member in members:
        own = [row for row in rows if row.protocol == member]
        metrics = ", ".join(dict.fromkeys(row.metric for row in own))
        runs = ", ".join(dict.fromkeys(row.run for row in own if row.run))
        lines.append((member, metrics, runs, tuple(tables[member].get(name, ABSENT) for name in fields)))
    return Family(kind, shared, fields, tuple(lines))


def without_record(rows: Sequence[Row], records: Records) -> list[str]:
    """Return the metrics of which some number has no protocol record."""
    return sorted({row.metric for row in rows if row.protocol not in records})
