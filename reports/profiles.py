"""Slices through layer x timestep maps, the paper's figures: over blocks, over training, best block against t."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from repa_eval.reports.arms import Arm
from repa_eval.reports.frames import Curve, Group, Map, Panel, Points
from repa_eval.reports.words import rank


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
    """Return the metric over blocks at one timestep, at the last step of each arm."""
    return _panel(maps, lambda one: _points((layer, one.at(max(one.values), layer, timestep)) for layer in one.layers))


def over_steps(maps: Sequence[Map], layer: int, timestep: float) -> Panel:
    """Return the metric over training at one block and timestep."""
    return _panel(maps, lambda one: _points((step, one.at(step, layer, timestep)) for step in one.values))


def best_over_time(maps: Sequence[Map]) -> Panel:
    """Return the maximum over blocks against t, at the last step of each arm."""
    return _panel(maps, lambda one: _points((time, _best(one, time)) for time in one.timesteps))


def _best(one: Map, timestep: float) -> float | None:
    values = [one.at(max(one.values), layer, timestep) for layer in one.layers]
    return max((value for value in values if value is not None), default=None)


def _points(pairs: Iterable[tuple[float, float | None]]) -> Points:
    return tuple((float(x), y) for x, y in pairs if y is not None)


def _panel(maps: Sequence[Map], points: Callable[[Map], Points]) -> Panel:
    curves = (Curve(one.arm, points(one)) for one in maps)
    return Panel(maps[0].group, tuple(curve for curve in curves if curve.mean))


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
    block = next((arm.aligned_layer for arm in arms if arm.role == "treated" and arm.aligned_layer), None)
    layer, timestep = best_cell(members, block)
    return members, layer, timestep


def _role_count(members: Sequence[Map]) -> tuple[bool, int]:
    return (any(one.arm.role == "treated" for one in members), len(members))


def best_cell(members: Sequence[Map], layer: int | None) -> tuple[int, float]:
    """Return the block (unless given) and the timestep at which the mean over the arms is highest."""
    first = members[0]
    layers = [layer] if layer in first.layers and layer is not None else list(first.layers)
    cells = [(layer, time) for layer in layers for time in first.timesteps]

    def height(cell: tuple[int, float]) -> float:
        values = [value for one in members if (value := one.at(max(one.values), *cell)) is not None]
        return sum(values) / len(values) if values else -math.inf

    return max(cells, key=height)
