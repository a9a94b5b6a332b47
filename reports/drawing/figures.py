"""Frames onto axes: (frame, Axes) -> Axes, and a figure as deterministic SVG text. Nothing is computed here.

Colours are drawn as stand-ins and replaced by CSS variables in the text, so that one drawing serves light and dark.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import matplotlib
import seaborn
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from repa_eval.reports.numbers.frames import Curve, Group, Level, Map, Panel, Points, Trace
from repa_eval.reports.numbers.words import number

PAINTS = {
    "ink": "#010101", "muted": "#020202", "rule": "#030303", "paper": "#040404", "empty": "#050505",
    "base": "#a10001", "a1": "#a10002", "a2": "#a10003", "a3": "#a10004", "a4": "#a10005", "a5": "#a10006",
    "k1": "#a10007", "k2": "#a10008",
}  # fmt: skip
COLOURS = "viridis"
NEAR = 0.09  # share of the height that a level's name takes
WIDE = 0.021  # share of the width that one of its letters takes
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "repa-eval",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 8.0,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 8.0,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "text.color": PAINTS["ink"],
    "axes.labelcolor": PAINTS["muted"],
    "axes.edgecolor": PAINTS["muted"],
    "axes.linewidth": 0.6,
    "xtick.color": PAINTS["muted"],
    "ytick.color": PAINTS["muted"],
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": PAINTS["rule"],
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "path.simplify": False,
    "text.parse_math": False,
}


@contextmanager
def style() -> Iterator[None]:
    """Draw in the house style whatever the user's matplotlibrc says; restored on leaving."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


@contextmanager
def canvas(
    width: float = 4.3, height: float = 2.7, *, margins: tuple[float, float, float, float] | None = None
) -> Iterator[tuple[Figure, Axes]]:
    """Yield a figure with one pair of axes in the house style.

    width, height: inches. margins: left, right, bottom, top in inches, for figures that must line up; else as needed.
    """
    with style():
        figure = Figure(figsize=(width, height), layout=None if margins else "constrained")
        if margins:
            left, right, bottom, top = margins
            figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height)
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        yield figure, axes


def lines(panel: Panel, ax: Axes, *, xlabel: str, log: bool = False, dots: bool = True) -> Axes:
    """Draw the curves of one group; the mean of several seeds bold, the seeds themselves faint."""
    for order, curve in enumerate(panel.curves):
        _curve(curve, ax, dots=dots, zorder=3 + order)
    if log and _positive(panel):
        _log_axis(ax, panel)
    else:
        ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.set_xlabel(xlabel)
    ax.set_ylabel(panel.label or panel.group.metric)
    seaborn.despine(ax=ax)
    _levels(panel.levels, ax)
    return ax


def _curve(curve: Curve, ax: Axes, *, dots: bool, zorder: float) -> None:
    colour = PAINTS[curve.arm.colour]
    dash = (0, (4, 1.6)) if curve.arm.dashed else "solid"
    alone = not curve.mean  # seeds without a mean, e.g. over seconds, where they share no x
    for seed in curve.seeds if len(curve.seeds) > 1 or alone else ():
        strength = {"linewidth": 1.1, "linestyle": dash} if alone else {"linewidth": 0.8, "alpha": 0.45}
        ax.plot(*_columns(seed), color=colour, zorder=zorder, **strength)
    if curve.mean:
        marker = "o" if dots and len(curve.mean) <= 40 else ""
        ax.plot(
            *_columns(curve.mean), color=colour, linestyle=dash, zorder=zorder,
            marker=marker, markersize=3.2, markeredgewidth=0.7, markeredgecolor=PAINTS["paper"],
        )  # fmt: skip


def _columns(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _positive(panel: Panel) -> bool:
    values = _heights(panel)
    return bool(values) and min(values) > 0


def _heights(panel: Panel) -> list[float]:
    return [y for curve in panel.curves for points in (curve.mean, *curve.seeds) for _, y in points]


def _log_axis(ax: Axes, panel: Panel) -> None:
    values = [*_heights(panel), *(level.value for level in panel.levels if level.value > 0)]
    share = max(values) / min(values)
    subs = (1.0,) if share > 100 else (1.0, 2.0, 5.0) if share > 5 else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.tick_params(axis="y", which="minor", length=0)


def _levels(levels: Sequence[Level], ax: Axes) -> None:
    """Draw reference levels, always inside the axes, and name each where no curve runs. The last thing to be drawn."""
    levels = [level for level in levels if level.value > 0 or ax.get_yscale() != "log"]
    if not levels:
        return
    curves = [line for line in ax.lines if line.get_transform() == ax.transData]
    for level in levels:
        ax.axhline(level.value, color=PAINTS["muted"], linewidth=0.9, linestyle=(0, (1, 1.8)), zorder=2)
    _make_room(ax, [level.value for level in levels])
    inside = ax.transData + ax.transAxes.inverted()
    taken = [place for line in curves for place in _along(inside.transform(line.get_xydata()))]
    heights = [float(inside.transform((0, level.value))[1]) for level in levels]
    for level, height in zip(levels, heights, strict=True):
        others = [other for other in heights if other != height]
        right, above = _free(taken, others, height, WIDE * len(level.label) + 0.02)
        ax.annotate(
            level.label, (1 if right else 0, level.value), xycoords=("axes fraction", "data"),
            xytext=(0 if right else 4, 2.5 if above else -2.5), textcoords="offset points",
            ha="right" if right else "left", va="bottom" if above else "top", color=PAINTS["muted"], fontsize=7,
        )  # fmt: skip


def _along(points: Any) -> list[tuple[float, float]]:
    """Return places on a line, close enough together that none passes through a name unseen."""
    places = [(float(x), float(y)) for x, y in points]
    between = [
        (x0 + (x1 - x0) * share / 24, y0 + (y1 - y0) * share / 24)
        for (x0, y0), (x1, y1) in pairwise(places)
        for share in range(24)
    ]
    return [*between, *places[-1:]]


def _free(
    taken: Sequence[tuple[float, float]], others: Sequence[float], height: float, width: float
) -> tuple[bool, bool]:
    """Return whether a level's name stands at the right, and whether above its line: where it meets the least."""

    def met(place: tuple[bool, bool]) -> int:
        right, above = place
        bottom = height if above else height - NEAR
        low, high = (1 - width, 1.0) if right else (0.0, width)
        lines = sum(bottom < other < bottom + NEAR for other in others) + (bottom < 0) + (bottom + NEAR > 1.001)
        return 100 * lines + sum(low <= x <= high and bottom <= y <= bottom + NEAR for x, y in taken)

    return min(((True, True), (True, False), (False, True), (False, False)), key=met)


def _make_room(ax: Axes, values: Sequence[float]) -> None:
    """Extend the axis so that every level lies inside it, with room for its name above and below."""
    log = ax.get_yscale() == "log"
    to, back = (math.log10, lambda value: 10**value) if log else (float, float)
    bottom, top = (to(limit) for limit in ax.get_ylim())
    heights = [to(value) for value in values if not log or value > 0]
    if heights:
        bottom, top = min(bottom, min(heights)), max(top, max(heights))
        top = max(top, bottom + (max(heights) - bottom) / (1 - NEAR))
        ax.set_ylim(back(bottom), back(top))


def heatmap(frame: Map, step: int | None, ax: Axes, *, scale: tuple[float, float]) -> Axes:
    """Draw one layer x timestep map at a step; cells without a value are drawn empty."""
    grid = frame.values.get(step) or tuple((None,) * len(frame.timesteps) for _ in frame.layers)
    filled = [[scale[0] if value is None else value for value in line] for line in grid]
    seaborn.heatmap(
        filled, ax=ax, vmin=scale[0], vmax=scale[1], cmap=COLOURS, cbar=False, rasterized=False, linewidths=0,
        xticklabels=[f"{time:g}" for time in frame.timesteps], yticklabels=[str(layer) for layer in frame.layers],
    )  # fmt: skip
    ax.invert_yaxis()
    ax.collections[0].set_gid("cells")
    ax.grid(False)
    _thin_ticks(ax, len(frame.layers), len(frame.timesteps))
    ax.tick_params(length=0, rotation=0)
    ax.set_xlabel("timestep t (1 = noise)")
    ax.set_ylabel("block")
    if frame.arm.aligned_layer in frame.layers and frame.arm.aligned_layer is not None:
        _mark_layer(ax, frame.layers.index(frame.arm.aligned_layer), len(frame.timesteps))
    return ax


def _thin_ticks(ax: Axes, rows: int, columns: int) -> None:
    every_row, every_column = -(-rows // 14), -(-columns // 10)
    for place, label in enumerate(ax.get_yticklabels()):
        label.set_visible(place % every_row == 0)
    for place, label in enumerate(ax.get_xticklabels()):
        label.set_visible(place % every_column == 0)


def _mark_layer(ax: Axes, row: int, columns: int) -> None:
    ax.annotate(
        "◂ aligned", (columns, row + 0.5), xytext=(3, 0), textcoords="offset points",
        va="center", ha="left", fontsize=7, color=PAINTS["muted"], annotation_clip=False,
    )  # fmt: skip


def profile(panel: Panel, ax: Axes, *, xlabel: str, mark: int | None = None) -> Axes:
    """Draw a metric over layers or timesteps; `mark` is the aligned layer."""
    if mark is not None:
        ax.axvline(mark, color=PAINTS["muted"], linewidth=0.9, linestyle=(0, (1, 1.8)), zorder=1)
        ax.annotate(
            "aligned block", (mark, 0), xycoords=("data", "axes fraction"), xytext=(3, 2), textcoords="offset points",
            ha="left", va="bottom", fontsize=7, color=PAINTS["muted"],
        )  # fmt: skip
    lines(replace(panel, levels=()), ax, xlabel=xlabel)
    xs = sorted({x for curve in panel.curves for x, _ in curve.mean})
    if len(xs) <= 12:
        ax.set_xticks(xs, [f"{x:g}" for x in xs])
    bottom, top = min(0.0, ax.get_ylim()[0]), ax.get_ylim()[1]
    ax.set_ylim(bottom, top + 0.03 * (top - bottom))  # a flat curve far from 0 must not lie on the frame
    _levels(panel.levels, ax)
    return ax


def bars(values: Sequence[tuple[str, float]], ax: Axes, *, xlabel: str) -> Axes:
    """Draw named numbers as horizontal bars from 0, the last one in colour, each with its number at the end."""
    names = [name for name, _ in values]
    colours = [PAINTS["base"]] * (len(values) - 1) + [PAINTS["a1"]]
    drawn = ax.barh(names, [value for _, value in values], height=0.62, color=colours)
    ax.bar_label(drawn, labels=[number(value) for _, value in values], padding=3, fontsize=7.5)
    ax.invert_yaxis()
    ax.grid(False)
    ax.margins(x=0.14)
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.set_xlabel(xlabel)
    seaborn.despine(ax=ax, left=True)
    return ax


def blocks(panel: Panel, ax: Axes, *, xlabel: str, ylabel: str) -> Axes:
    """Draw two curves over blocks from 0 to 1, each named at its end: the upper one above it, the other below."""
    for order, curve in enumerate(sorted(panel.curves, key=lambda curve: -curve.mean[-1][1])):
        _curve(curve, ax, dots=True, zorder=3 + order)
        ax.annotate(
            curve.arm.name, curve.mean[-1], xytext=(6, 0 if order == 0 else -3), textcoords="offset points",
            va="bottom" if order == 0 else "top", fontsize=7, color=PAINTS[curve.arm.colour], annotation_clip=False,
        )  # fmt: skip
    xs = sorted({x for curve in panel.curves for x, _ in curve.mean})
    ax.set_xticks(xs[:: -(-len(xs) // 12)], [f"{x:g}" for x in xs[:: -(-len(xs) // 12)]])
    ax.margins(x=0.12)
    ax.set_ylim(min(0.0, ax.get_ylim()[0]), 1.04)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    seaborn.despine(ax=ax)
    return ax


def traces(ways: Sequence[Trace], ax: Axes, *, xlabel: str, ylabel: str) -> Axes:
    """Draw two metrics against each other, joined along training; the first and the last step are named."""
    for order, way in enumerate(ways):
        line = Curve(way.arm, way.mean, way.seeds)
        _curve(line, ax, dots=True, zorder=3 + order)
    panel = Panel(Group(ylabel, None), tuple(Curve(way.arm, way.mean, way.seeds) for way in ways))
    if _positive(panel):
        _log_axis(ax, panel)
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.margins(x=0.09, y=0.1)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    for way in ways:
        _name_ends(way, ax)
    seaborn.despine(ax=ax)
    return ax


def _name_ends(way: Trace, ax: Axes) -> None:
    ends = {0: ("center", "bottom", (0, 4)), -1: ("center", "top", (0, -4))}
    for place in (0, -1) if len(way.steps) > 1 else (-1,):
        across, up, offset = ends[place]
        ax.annotate(
            str(way.steps[place]), way.mean[place], xytext=offset, textcoords="offset points", ha=across, va=up,
            fontsize=7, color=PAINTS[way.arm.colour], annotation_clip=False,
        )  # fmt: skip


def svg(figure: Figure, *, prefix: str = "") -> str:
    """Return the figure as an SVG element for a page: same input, same bytes. `prefix` keeps its ids its own."""
    buffer = io.StringIO()
    with style():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    for pattern, replacement in _CLEAN:
        text = pattern.sub(replacement, text)
    text = prefixed(text, prefix)
    text = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), text)
    return paint(text)


def prefixed(text: str, prefix: str) -> str:
    """Return SVG text whose ids, and references to them, begin with `prefix`."""
    text = re.sub(r' id="', f' id="{prefix}', text)
    return re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}", text)


_IDS = r"figure|axes|patch|text|line2d|xtick|ytick|matplotlib\.axis|LineCollection"
_CLEAN = [
    (re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL), ""),
    (re.compile(r"<!--.*?-->\s*", re.DOTALL), ""),
    (re.compile(r"\s*<defs>\s*<style.*?</style>\s*</defs>", re.DOTALL), ""),
    (re.compile(r'(<svg[^>]*?) width="[^"]*"'), r"\1"),
    (re.compile(r'(<svg[^>]*?) height="[^"]*"'), r"\1"),
    (re.compile(rf' id="(?:{_IDS})_\d+"'), ""),
    (re.compile(r"font-family: '[^']*'; "), ""),
    (re.compile(r' transform="rotate\(-0 [^"]*"'), ""),
    (re.compile(r" *\n *"), "\n"),
]


def paint(text: str) -> str:
    """Return SVG text with the stand-in colours replaced by CSS variables."""
    for name, colour in PAINTS.items():
        text = text.replace(colour, f"var(--{name})")
    return text


def palette(count: int = 64) -> list[str]:
    """Return `count` colours of the maps, from that of the lowest value to that of the highest, as #rrggbb."""
    colours = matplotlib.colormaps[COLOURS]
    return [to_hex(colours(place / (count - 1))) for place in range(count)]


def mark_cells(text: str, empty: Sequence[bool]) -> str:
    """Return a heat map's SVG with its cells marked for the script, empty ones painted as such."""
    start = text.index('cells"')
    end = text.index("</g>", start)
    counter = iter(empty)

    def cell(found: re.Match[str]) -> str:
        body = re.sub(r' clip-path="[^"]*"', "", found[0])
        if next(counter):
            body = re.sub(r"fill: [^;\"]+", "fill: var(--empty)", body)
        return body.replace("<path ", '<path class="cell" ', 1)

    body = re.sub(r"<path [^>]*>", cell, text[start:end])
    return text[:start] + body + text[end:]
