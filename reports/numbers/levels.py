"""The teacher's own score as a reference level beside a probe of hidden states, where both were measured alike."""

from __future__ import annotations

from collections.abc import Sequence

from repa_eval.reports.numbers.frames import TEACHER, Group, Level
from repa_eval.reports.numbers.protocols import Records, flat
from repa_eval.results import Row

# what may differ between a probe of hidden states and one of a teacher: whose features, and how they were made
OWN = frozenset({"features", "pooling", "seed", "dtype", "label"})


def teacher_levels(rows: Sequence[Row], group: Group, records: Records) -> tuple[Level, ...]:
    """Return a level, the mean over runs, for every teacher whose probe has the group's n, data and recipe."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row.metric == group.metric + TEACHER and row.value is not None and _alike(row, group, records):
            found.setdefault(teacher_of(row, records), []).append(row.value)
    levels = (Level(sum(values) / len(values), name, group.n) for name, values in found.items())
    return tuple(sorted(levels, key=lambda level: (level.value, level.label)))


def teacher_of(row: Row, records: Records) -> str:
    """Return the name of the teacher whose features a row speaks of."""
    features = str(records.get(row.protocol or "", {}).get("features") or "")
    return features.removeprefix("teacher ") or "teacher"


def _alike(row: Row, group: Group, records: Records) -> bool:
    own, other = (flat(records.get(protocol or "", {})) for protocol in (row.protocol, group.protocol))
    return row.n == group.n and all(own[name] == other[name] for name in set(own) & set(other) - OWN)
