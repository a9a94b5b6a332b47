"""Pictures beside the report: the layer x timestep maps of `repa-eval align --plot` as one image file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from repa_eval.errors import UserError
from repa_eval.reports.drawing.figures import COLOURS
from repa_eval.reports.drawing.plot_files import kind_of
from repa_eval.reports.numbers.arms import arms_of
from repa_eval.reports.numbers.caption_charts import charts
from repa_eval.reports.numbers.frames import maps_of
from repa_eval.reports.numbers.protocols import Records
from repa_eval.results import Row, records_of
from repa_eval.runtime.files import write_atomic


def save_maps(rows: Sequence[Row], file: Path) -> None:
    """Draw one annotated map per metric and teacher, that of the last step, into a png, svg or pdf file."""
    kind, records = kind_of(file), records_of(rows)
    maps = maps_of(rows, arms_of(rows, {}))
    if not maps:
        raise UserError(f"--plot {file}: none of the rows has a layer and a timestep, so there is no map to draw")
    figure, axes = plt.subplots(
        1, len(maps), figsize=(0.9 + 4.6 * len(maps), 1.6 + 0.42 * max(len(m.layers) for m in maps)), squeeze=False
    )
    for frame, ax in zip(maps, axes[0], strict=True):
        grid = [[float("nan") if value is None else value for value in line] for line in frame.values[frame.last]]
        teacher = records.get(frame.group.protocol or "", {}).get("teacher", "")
        of = "" if frame.last is None else f", step {frame.last}"
        title = f"{frame.group.metric}{f' with {teacher}' if teacher else ''}{of}"
        draw_map(grid, ax, layers=frame.layers, timesteps=frame.timesteps, title=title)
    _save(figure, file, kind)


def draw_map(
    values: ArrayLike, ax: Axes | None = None, *, layers: Sequence[int], timesteps: Sequence[float], title: str
) -> Axes:
    """Draw values (layers, timesteps) as an annotated map, layers upwards, NaN left white; return the Axes.

    ax: where to draw; None for a new figure.
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(0.9 + 0.74 * max(len(timesteps), 2), 1.6 + 0.42 * len(layers)))
    names = [f"{t:g}" for t in timesteps]
    seaborn.heatmap(values, ax=ax, annot=True, fmt=".2f", cmap=COLOURS, xticklabels=names, yticklabels=layers)
    ax.invert_yaxis()
    ax.tick_params(length=0, rotation=0)
    ax.set_title(title)
    ax.set(xlabel="timestep t (1 = noise)", ylabel="block")
    return ax


def save_captions(rows: Sequence[Row], records: Records, file: Path) -> None:
    """Draw rank@1 by timestep and the guidance curves into a png, svg or pdf file."""
    kind = kind_of(file)
    found = charts(rows, arms_of(rows, {}), records)
    figure, axes = plt.subplots(1, len(found), figsize=(4.4 * len(found), 3.6), squeeze=False)
    for chart, ax in zip(found, axes[0], strict=True):
        for curve in chart.panel.curves:
            frozen = curve.arm.dashed
            colour, style = ("0.5", "--o") if frozen else ("C0", "-o")
            ax.plot(*zip(*curve.mean, strict=True), style, color=colour, label=curve.arm.name)
        ax.set(xlabel=chart.xlabel, ylabel=chart.panel.label, title=chart.title)
        ax.legend()
    _save(figure, file, kind)


def _save(figure: Figure, file: Path, kind: str) -> None:
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=160)
    plt.close(figure)
    write_atomic(file, buffer.getvalue())
