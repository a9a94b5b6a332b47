"""Layer x timestep maps drawn, with the paper's profiles."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from repa_eval.interfaces.section import section
from repa_eval.reports.drawing import figures
from repa_eval.reports.drawing.figure import SMALL, STEP, Figure
from repa_eval.reports.drawing.panels import alt_text
from repa_eval.reports.numbers.frames import NO_STEP, Group, Level, Map, Panel, extent, step_name
from repa_eval.reports.numbers.levels import teacher_levels
from repa_eval.reports.numbers.profiles import (
    PROBES,
    best_cell,
    best_over_time,
    by_group,
    by_metric,
    over_layers,
    over_steps,
)
from repa_eval.reports.numbers.protocols import Records, field
from repa_eval.reports.numbers.words import Metrics, listing, number
from repa_eval.reports.page import Page
from repa_eval.results import Row

MAP_MARGINS = (0.42, 0.62, 0.4, 0.08)


@dataclass(frozen=True)
class MapRow:
    """The maps that share a protocol, side by side."""

    title: str
    protocol: str | None
    figures: tuple[Figure, ...]
    profiles: tuple[Figure, ...]


@dataclass(frozen=True)
class MapBlock:
    """All maps of one metric: one colour scale."""

    metric: str
    meaning: str
    low: str
    high: str
    rows: tuple[MapRow, ...]
    unfolded: bool = False


def shrink(data: Mapping[str, Any], room: int) -> tuple[Mapping[str, Any], str]:
    """Return the maps' numbers with fewer digits, then at fewer steps, until they fit into `room` bytes; and what went.

    The first step and the last one stay.
    """
    steps, smaller = list(data["steps"]), data
    for digits, every in ((5, 1), (4, 1), (3, 1), *((3, 2**power) for power in range(1, 12)), (2, 2**11)):
        kept = [step for place, step in enumerate(reversed(steps)) if place % every == 0][::-1]
        kept = kept if kept[0] == steps[0] else [steps[0], *kept]
        smaller = {**data, "steps": kept, "maps": [_thinned(one, digits, set(kept)) for one in data["maps"]]}
        if len(json.dumps(smaller, separators=(",", ":"))) <= room:
            break
    at = "" if len(kept) == len(steps) else f" at {len(kept)} of {len(steps)} steps"
    return smaller, f"shown with {digits} digits{at}; results.jsonl has all of them"


def _thinned(one: Mapping[str, Any], digits: int, kept: set[str]) -> dict[str, Any]:
    """Return a map's numbers at the steps to be kept, and at its own last one."""
    last = list(one["steps"])[-1]
    steps = {
        step: [None if value is None else float(f"{value:.{digits}g}") for value in values]
        for step, values in one["steps"].items()
        if step in kept or step == last
    }
    return {**one, "steps": steps}


@section(
    order=40,
    anchor="maps",
    title="Representations by block and timestep",
    name="Representations",
    shrink=shrink,
)
def build(page: Page) -> dict[str, Any] | None:
    """Return the maps of every metric; `data` has their numbers at every step, for the slider."""
    blocks, numbers = map_blocks(page.maps, page.rows, page.records, page.metrics)
    if not blocks:
        return None
    steps = _steps(page.maps)
    return {
        "blocks": blocks,
        "steps": steps,
        "gradient": ", ".join(figures.palette(9)),
        "data": {"maps": numbers, "steps": steps, "colours": figures.palette()},
    }


def _steps(maps: Sequence[Map]) -> list[str]:
    """Return the positions of the slider; "no step" is one of them only beside steps of the same map."""
    recorded = sorted({step for one in maps for step in one.steps})
    mixed = any(one.steps and None in one.values for one in maps)
    return [NO_STEP] * mixed + [str(step) for step in recorded]


def map_blocks(
    maps: Sequence[Map], rows: Sequence[Row], records: Records, metrics: Metrics
) -> tuple[list[MapBlock], list[dict[str, object]]]:
    """Return the maps by metric, and the numbers from which the script recolours them."""
    blocks: list[MapBlock] = []
    data: list[dict[str, object]] = []
    for metric, members in by_metric(maps).items():
        scale = extent(members)
        lines = []
        for group, own in sorted(by_group(members).items(), key=lambda item: -len(item[1])):
            drawn = []
            for one in own:
                key = f"map{len(data)}"
                data.append(map_data(one, key, scale))
                drawn.append(_map(one, key, scale))
            levels = teacher_levels(rows, group, records)
            profiles = _profiles(own, levels, records, metrics.axis(metric))
            lines.append(MapRow(against(group, records), group.protocol, tuple(drawn), profiles))
        unfolded = len(blocks) < 2 or metric == PROBES[0]
        blocks.append(
            MapBlock(metric, metrics.meaning(metric), number(scale[0]), number(scale[1]), tuple(lines), unfolded)
        )
    return blocks, data


def against(group: Group, records: Records) -> str:
    """Return what the maps of a group were measured with: teacher, images, weights."""
    teacher = field(records, group.protocol, "teacher")
    images = "test images" if group.metric in PROBES else "images"
    parts = [f"teacher {teacher}" if teacher else "", f"{group.n} {images}" if group.n else ""]
    parts += [f"{group.weights} weights" if group.weights and group.weights != "ema" else ""]
    return ", ".join(filter(None, parts))


def _map(one: Map, key: str, scale: tuple[float, float]) -> Figure:
    height = min(4.2, max(1.7, 0.26 * len(one.layers) + 0.48))
    with figures.canvas(3.4, height, margins=MAP_MARGINS) as (figure, ax):
        figures.heatmap(one, one.last, ax, scale=scale)
        svg = figures.svg(figure)
    empty = [value is None for line in one.values[one.last] for value in line]
    at = f"at step {one.last}" if one.last is not None else "of weights without a recorded step"
    label = f"{one.group.metric} of {_named(one)} by block and timestep {at}"
    return Figure(figures.mark_cells(svg, empty), _named(one), step_name(one.last), label, key)


def _named(one: Map) -> str:
    return one.arm.name + (f", mean of {one.seeds} seeds" if one.seeds > 1 else "")


def map_data(one: Map, key: str, scale: tuple[float, float]) -> dict[str, object]:
    """Return one map's numbers for the page, five significant digits."""
    return {
        "key": key,
        "arm": _named(one),
        "metric": one.group.metric,
        "layers": list(one.layers),
        "timesteps": list(one.timesteps),
        "low": scale[0],
        "high": scale[1],
        "steps": {
            NO_STEP if step is None else str(step): [
                None if value is None else float(f"{value:.5g}") for line in grid for value in line
            ]
            for step, grid in one.values.items()
        },
    }


def _profiles(maps: Sequence[Map], levels: Sequence[Level], records: Records, label: str) -> tuple[Figure, ...]:
    aligned = next(
        (one.arm.aligned_layer for one in maps if one.arm.aligned_layer and one.arm.role != "baseline"), None
    )
    layer, timestep = best_cell(maps, aligned)
    dotted = listing(f"{level.label} {number(level.value)}" for level in levels)
    where = against(maps[0].group, records) or "no protocol recorded"
    end = f"{where}.{f' Dotted: the same probe on clean images, {dotted}.' if dotted else ''}"
    block = f"Block {layer}{' (the aligned one)' if layer == aligned else ''}, t = {timestep:g}"
    result = []

    def add(panel: Panel, xlabel: str, title: str, caption: str, mark: int | None = None) -> None:
        result.append(
            _profile(replace(panel, levels=tuple(levels), label=label), xlabel, title, f"{caption}; {end}", mark)
        )

    if len(maps[0].layers) > 1:
        add(over_layers(maps, timestep), "block", "Over blocks", f"At t = {timestep:g}, last checkpoint", aligned)
    if any(len(one.steps) > 1 for one in maps):
        add(over_steps(maps, layer, timestep), STEP, "Over training", block)
    if len(maps[0].timesteps) > 1:
        caption = "Maximum over blocks at each t, last checkpoint"
        add(best_over_time(maps), "timestep t (1 = noise)", "Best block against t", caption)
    return tuple(result)


def _profile(panel: Panel, xlabel: str, title: str, caption: str, mark: int | None) -> Figure:
    with figures.canvas(SMALL, 0.64 * SMALL) as (figure, ax):
        figures.profile(panel, ax, xlabel=xlabel, mark=mark)
        svg = figures.svg(figure)
    return Figure(svg, f"{panel.group.metric}: {title[0].lower()}{title[1:]}", caption, alt_text(panel, xlabel))
