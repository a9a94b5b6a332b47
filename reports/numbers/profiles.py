"""Slices through layer x timestep maps, the paper's figures: over blocks, over training, best block against t;
and sample quality beside one cell of the map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from repa_eval.reports.numbers.arms import Arm, aligned_block
from repa_eval.reports.numbers.frames import Curve, Group, Map, Panel, Points, Trace, mean_of, series
from repa_eval.reports.numbers.words import rank
from repa_eval.results import Row

PROBES = ("probe_accuracy", "knn_accuracy")  # that a sweep takes, the one that decides first


def by_group(maps: Sequence[Map]) -> dict[Group, list[Map]]:
    """Return the maps by group, groups in their order of appearance."""
    result: dict[Group, list[Map]] = {}
    for one in maps:
        result.setdefault(one.group, []).append(one)
    return result


def by_metric(maps: Sequence[Map]) -> dict[str, list[Map]]:
    """Return the maps by metric, in their order of appearance."""
    result: dict[str, list[Map]] = {}
    for one in maps:
        result.setdefault(one.group.metric, []).append(one)
    return result


def over_layers(maps: Sequence[Map], timestep: float) -> Panel:
    """Return the metric over blocks at one timestep, at the last step of each run."""
    return _panel(maps, lambda one: _points((layer, one.at(one.last, layer, timestep)) for layer in one.layers))


def over_steps(maps: Sequence[Map], layer: int, timestep: float) -> Panel:
    """Return the metric over training at one block and timestep."""
    return _panel(maps, lambda one: _points((step, one.at(step, layer, timestep)) for step in one.steps))


def best_over_time(maps: Sequence[Map]) -> Panel:
    """Return the maximum over blocks against t, at the last step of each run."""
    return _panel(maps, lambda one: _points((time, _best(one, time)) for time in one.timesteps))


def _best(one: Map, timestep: float) -> float | None:
    values = [one.at(one.last, layer, timestep) for layer in one.layers]
    return max((value for value in values if value is not None), default=None)


def _points(pairs: Iterable[tuple[float, float | None]]) -> Points:
    return tuple((float(x), y) for x, y in pairs if y is not None)


def _panel(maps: Sequence[Map], points: Callable[[Map], Points]) -> Panel:
    """Return a curve of every arm: a line of every seed, and their mean where all of them were measured."""
    curves = []
    for one in maps:
        seeds = tuple(found for run in one.singles.values() if (found := points(run)))
        if seeds:
            curves.append(Curve(one.arm, mean_of(seeds), seeds))
    return Panel(maps[0].group, tuple(curves))


def trajectories(maps: Sequence[Map], layer: int, timestep: float, rows: Sequence[Row], group: Group) -> list[Trace]:
    """Return, per arm, the metric at one block and t beside a metric of sample quality, at steps that have both."""
    result = []
    for one in maps:
        seeds = []
        for run, own in one.singles.items():
            quality = dict(series(rows, group, run))
            inner = ((step, own.at(step, layer, timestep)) for step in own.steps)
            seeds.append({step: (x, quality[step]) for step, x in inner if x is not None and step in quality})
        traces = [tuple(seed.values()) for seed in seeds if seed]
        steps = sorted(set.intersection(*map(set, filter(None, seeds)))) if traces else []
        found = [seed for seed in seeds if seed]
        mean = tuple((_mean(seed[step][0] for seed in found), _mean(seed[step][1] for seed in found)) for step in steps)
        if mean:
            result.append(Trace(one.arm, tuple(steps), mean, tuple(traces)))
    return result


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return sum(known) / len(known)


def alignment_choice(maps: Sequence[Map], arms: Sequence[Arm]) -> tuple[list[Map], int, float] | None:
    """Return the maps of the deciding metric, a block and a timestep.

    Block: the aligned one of the first treated arm, else the one with the highest mean. Timestep: where the
    mean over the arms is highest at that block, a rule that favours no arm.
    """
    if not maps:
        return None
    members = max(
        by_group(maps).values(), key=lambda members: (-rank(members[0].group.metric)[0], _role_count(members))
    )
    layer, timestep = best_cell(members, aligned_block(arms))
    return members, layer, timestep


def _role_count(members: Sequence[Map]) -> tuple[bool, int]:
    return (any(one.arm.role == "treated" for one in members), len(members))


def best_cell(members: Sequence[Map], layer: int | None) -> tuple[int, float]:
    """Return the block (unless given) and the timestep at which the mean over the arms is highest."""
    first = members[0]
    layers = [layer] if layer in first.layers and layer is not None else list(first.layers)
    cells = [(layer, time) for layer in layers for time in first.timesteps]

    def height(cell: tuple[int, float]) -> float:
        values = [value for one in members if (value := one.at(one.last, *cell)) is not None]
        return sum(values) / len(values) if values else -math.inf

    return max(cells, key=height)
