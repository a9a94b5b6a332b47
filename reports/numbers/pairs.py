"""Runs of two arms that share their seed, and the spread of a number over such pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from repa_eval.reports.numbers.arms import Arm, seed_of
from repa_eval.reports.numbers.frames import Group, Points, series
from repa_eval.results import Row


@dataclass(frozen=True)
class Spread:
    """A number over seeds: its mean, its range and its standard deviation; one seed has no spread."""

    mean: float
    low: float
    high: float
    seeds: int
    sd: float | None = None  # of the sample, n - 1


def spread(values: Sequence[float], *, geometric: bool = False) -> Spread | None:
    """Return the spread of values; None for none. geometric: the mean is that of ratios, all of them positive."""
    if not values:
        return None
    middle = sum(values) / len(values)
    mean = math.exp(sum(map(math.log, values)) / len(values)) if geometric else middle
    squares = sum((value - middle) ** 2 for value in values)
    sd = math.sqrt(squares / (len(values) - 1)) if len(values) > 1 else None
    return Spread(mean, min(values), max(values), len(values), sd)


def pairs_of(arm: Arm, other: Arm) -> list[tuple[str, str]]:
    """Return the runs of two arms that share their seed."""
    partners = {seed_of(run, other.name): run for run in other.runs}
    found = ((run, partners.get(seed_of(run, arm.name))) for run in arm.runs)
    return [(run, partner) for run, partner in found if partner is not None]


def paired(group: Group, rows: Sequence[Row], arm: Arm, other: Arm) -> list[tuple[Points, Points]]:
    """Return the curves of those runs of two arms that share their seed."""
    return [(series(rows, group, run), series(rows, group, partner)) for run, partner in pairs_of(arm, other)]
