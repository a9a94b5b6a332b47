"""Frames drawn: every section of the page as figures with captions, ready for the template."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from repa_eval.reports import figures
from repa_eval.reports.frames import Group, Map, Panel, against_seconds, extent, split
from repa_eval.reports.profiles import best_cell, best_over_time, by_group, by_metric, over_layers, over_steps
from repa_eval.reports.protocols import Records, difference, field
from repa_eval.reports.words import axis, direction, meaning, number
from repa_eval.results import Row

STEP = "training step"
SMALL, LARGE = 3.6, 4.4  # inches; the page scales them
MAP_MARGINS = (0.42, 0.62, 0.4, 0.08)


@dataclass(frozen=True)
class Figure:
    """One drawing with what to read in it."""

    svg: str
    title: str
    caption: str = ""
    label: str = ""  # what a screen reader says
    key: str = ""


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


class Ids:
    """Hands out the prefixes that keep the ids of the drawings apart."""

    def __init__(self) -> None:
        self._last = 0

    def next(self) -> str:
        """Return a prefix that was not handed out before."""
        self._last += 1
        return f"f{self._last}-"


def quality(panel: Panel, ids: Ids, records: Records, *, xlabel: str = STEP, width: float = SMALL) -> Figure:
    """Return a metric of sample quality over steps or seconds; `width` in inches."""
    log = direction(panel.group.metric) == "lower"
    with figures.canvas(width, 0.64 * width) as (figure, ax):
        figures.lines(panel, ax, xlabel=xlabel, log=log)
        svg = figures.svg(figure, prefix=ids.next())
    text = conditions(panel.group, records)
    if log and panel.level is None:
        text += " Logarithmic axis."
    elif panel.level is not None:
        text += f" Dotted: {number(panel.level)}, the value of {panel.level_n} real images."
    return Figure(svg, panel.group.metric, text, _spoken(panel, xlabel))


def _spoken(panel: Panel, xlabel: str) -> str:
    parts = []
    for curve in panel.curves:
        points = curve.mean or next(iter(curve.seeds), ())
        if points:
            parts.append(f"{curve.arm.name} from {number(points[0][1])} to {number(points[-1][1])}")
    return f"{panel.group.metric} over {xlabel}: {'; '.join(parts)}"


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


def seconds(
    panels: Sequence[Panel], rows: Sequence[Row], timing: Sequence[Row], ids: Ids, records: Records
) -> list[Figure]:
    """Return the distances over training seconds; nothing for runs without a clock."""
    result = []
    for panel in panels:
        if direction(panel.group.metric) != "lower":
            continue
        moved = against_seconds(panel, rows, timing)
        if moved is not None:
            result.append(quality(moved, ids, records, xlabel="training seconds"))
    return result


def protocol_notes(rows: Iterable[Row], records: Records) -> list[str]:
    """Return a sentence for every metric that was measured under several protocols."""
    protocols: dict[str, list[str | None]] = {}
    for group in sorted(split(rows), key=Group.order):
        known = protocols.setdefault(group.metric, [])
        if group.protocol not in known:
            known.append(group.protocol)
    by_text: dict[tuple[int, str], list[str]] = {}
    for metric, found in protocols.items():
        if len(found) > 1:
            by_text.setdefault((len(found), difference(found, records)), []).append(metric)
    return [
        f"{', '.join(metrics)}: measured under {count} protocols, which differ in {fields}; never drawn in one curve."
        for (count, fields), metrics in by_text.items()
    ]


def training(panels: Sequence[Panel], ids: Ids) -> list[Figure]:
    """Return the training curves."""
    result = []
    for panel in panels:
        metric = panel.group.metric
        with figures.canvas(SMALL, 0.64 * SMALL) as (figure, ax):
            figures.lines(panel, ax, xlabel=STEP, ylabel=axis(metric), dots=False, log=metric == "grad_norm")
            svg = figures.svg(figure, prefix=ids.next())
        result.append(
            Figure(svg, metric, f"{meaning(metric).capitalize()}." if meaning(metric) else "", _spoken(panel, STEP))
        )
    return result


def map_blocks(maps: Sequence[Map], ids: Ids, records: Records) -> tuple[list[MapBlock], list[dict[str, object]]]:
    """Return the maps by metric, and the numbers from which the script recolours them."""
    blocks: list[MapBlock] = []
    data: list[dict[str, object]] = []
    for metric, members in by_metric(maps).items():
        scale = extent(members)
        rows = []
        for group, own in sorted(by_group(members).items(), key=lambda item: -len(item[1])):
            drawn = []
            for one in own:
                key = f"map{len(data)}"
                data.append(map_data(one, key, scale))
                drawn.append(_map(one, key, scale, ids))
            rows.append(MapRow(_against(group, records), group.protocol, tuple(drawn), _profiles(own, ids, records)))
        blocks.append(MapBlock(metric, meaning(metric), number(scale[0]), number(scale[1]), tuple(rows)))
    return blocks, data


def _against(group: Group, records: Records) -> str:
    teacher = field(records, group.protocol, "teacher")
    parts = [f"teacher {teacher}" if teacher else "", f"{group.n} images" if group.n else ""]
    parts += [f"{group.weights} weights" if group.weights and group.weights != "ema" else ""]
    return ", ".join(filter(None, parts))


def _map(one: Map, key: str, scale: tuple[float, float], ids: Ids) -> Figure:
    last = max(one.values)
    height = min(4.2, max(1.7, 0.26 * len(one.layers) + 0.48))
    with figures.canvas(3.4, height, margins=MAP_MARGINS) as (figure, ax):
        figures.heatmap(one, last, ax, scale=scale)
        svg = figures.svg(figure, prefix=ids.next())
    empty = [value is None for line in one.values[last] for value in line]
    label = f"{one.group.metric} of {one.arm.name} by block and timestep at step {last}"
    return Figure(figures.mark_cells(svg, empty), one.arm.name, f"step {last}", label, key)


def map_data(one: Map, key: str, scale: tuple[float, float]) -> dict[str, object]:
    """Return one map's numbers for the page, five significant digits."""
    return {
        "key": key,
        "arm": one.arm.name + (f", mean of {one.seeds} seeds" if one.seeds > 1 else ""),
        "metric": one.group.metric,
        "layers": list(one.layers),
        "timesteps": list(one.timesteps),
        "low": scale[0],
        "high": scale[1],
        "steps": {
            str(step): [None if value is None else float(f"{value:.5g}") for line in grid for value in line]
            for step, grid in one.values.items()
        },
    }


def _profiles(maps: Sequence[Map], ids: Ids, records: Records) -> tuple[Figure, ...]:
    aligned = next(
        (one.arm.aligned_layer for one in maps if one.arm.aligned_layer and one.arm.role != "baseline"), None
    )
    layer, timestep = best_cell(maps, aligned)
    where = _against(maps[0].group, records) or "no protocol recorded"
    result = []
    if len(maps[0].layers) > 1:
        caption = f"At t = {timestep:g}, last checkpoint; {where}."
        result.append(_profile(over_layers(maps, timestep), "block", "Over blocks", caption, ids, mark=aligned))
    if any(len(one.values) > 1 for one in maps):
        caption = f"Block {layer}{' (the aligned one)' if layer == aligned else ''}, t = {timestep:g}; {where}."
        result.append(_profile(over_steps(maps, layer, timestep), STEP, "Over training", caption, ids))
    if len(maps[0].timesteps) > 1:
        caption = f"Maximum over blocks at each t, last checkpoint; {where}."
        result.append(_profile(best_over_time(maps), "timestep t (1 = noise)", "Best block against t", caption, ids))
    return tuple(result)


def _profile(panel: Panel, xlabel: str, title: str, caption: str, ids: Ids, *, mark: int | None = None) -> Figure:
    with figures.canvas(SMALL, 0.64 * SMALL) as (figure, ax):
        figures.profile(panel, ax, xlabel=xlabel, mark=mark)
        svg = figures.svg(figure, prefix=ids.next())
    return Figure(svg, f"{panel.group.metric}: {title[0].lower()}{title[1:]}", caption, _spoken(panel, xlabel))
