"""`repa-eval align`: alignment of a checkpoint's hidden states with a teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from repa_eval.commands.shared.checkpoint import data_of
from repa_eval.commands.shared.measured_data import open_measured
from repa_eval.commands.shared.session import CacheOptions, Session, SessionOptions, cache_options, session
from repa_eval.console.app import Command, example
from repa_eval.console.numbers import Real
from repa_eval.console.option_groups import flag, option_group
from repa_eval.console.options import (
    CheckpointOptions,
    ComputeOptions,
    DataOptions,
    GridOptions,
    RowsOptions,
    checkpoint_options,
    compute_options,
    data_options,
    grid_options,
    rows_options,
)
from repa_eval.console.tables import deliver, layer_table
from repa_eval.errors import UserError
from repa_eval.reports.drawing.plot_files import kind_of
from repa_eval.results import Row

OF_NEIGHBOURS, NEIGHBOURS = ("cknna", "mutual_knn"), 10  # metrics of the lists of so many nearest neighbours


@dataclass(frozen=True, kw_only=True)
class AlignOptions:
    """What is measured between hidden states and teachers, and on which images."""

    metrics: str = flag(
        "--metrics", metavar="NAME[,NAME]", default="cknna,cka", help="`repa-eval list metrics` explains them"
    )
    raw: bool = flag("--raw", is_flag=True, help="use features as they are: neither clamped nor L2-normalised")
    clamp: float = flag(
        "--clamp",
        type=Real(0, 1),
        default=0.95,
        help="clamp features at this quantile of their absolute values before L2-normalisation; 1 = no clamp",
    )
    pool: str = flag(
        "--pool",
        type=click.Choice(["mean", "cls"]),
        default="mean",
        help="the vector of an image: the mean of its patch tokens, or its class token",
    )
    against: str = flag(
        "--against",
        metavar="NAME[,NAME]",
        default="",
        help="other teachers: their alignment with the teacher, as a reference",
    )
    confidence: bool = flag(
        "--ci", is_flag=True, help="add standard errors and the score of randomly re-paired images (chance level)"
    )
    plot: Path | None = flag(
        "--plot", type=click.Path(dir_okay=False, path_type=Path), help="draw the map to this file (png, svg, pdf)"
    )


@click.command(cls=Command, short_help="Compare hidden states with a teacher")
@checkpoint_options
@grid_options
@data_options
@option_group("options", AlignOptions)
@cache_options
@compute_options
@rows_options
@example("repa-eval align --ckpt runs/digits-repa/checkpoints/0001500.pt --layer 3")
def command(
    checkpoint: CheckpointOptions,
    grid: GridOptions,
    images: DataOptions,
    options: AlignOptions,
    cache: CacheOptions,
    compute: ComputeOptions,
    output: RowsOptions,
) -> None:
    """Measure CKNNA, CKA and others between hidden states and a teacher, per layer and timestep.

    All layers are read in one forward pass per timestep.
    """
    if options.plot is not None:
        kind_of(options.plot)
    with session(
        SessionOptions("align", checkpoint, grid, images, cache, compute, options, pool=options.pool)
    ) as current:
        rows = _measure(current, grid, images, options)
        if current.capture.share.first:
            deliver(rows, output, show=lambda shown: _show(shown, current.aligned))
            if options.plot is not None:
                _plot([row for row in rows if row.layer is not None], options.plot)


def _measure(current: Session, grid: GridOptions, data: DataOptions, options: AlignOptions) -> list[Row]:
    """Return the rows of the checkpoint and, as a reference, of each teacher."""
    from repa_eval.interfaces.metric import SPATIAL
    from repa_eval.interfaces.teacher import RecordedTeacher, split_names

    name = data_of(current.opened, grid.data_name)
    images = open_measured(name, current.model, data, cache=current.capture.cache, device=current.device)
    current.check(images)
    teachers = current.teachers(grid, images)
    if not teachers:
        usual = "digits-vit" if current.model.image_shape[0] == 1 else "dinov2-vit-b"
        raise UserError(f"{current.opened.path} records no teacher: name one with --teacher, such as {usual}")
    wanted = [metric.strip() for metric in options.metrics.split(",")]
    of_tokens = [name for name in wanted if name in SPATIAL.names()]
    of_images = [name for name in wanted if name not in of_tokens]
    others = [current.load(RecordedTeacher(other)) for other in split_names(options.against)]
    rows = _token_structure(current, None, images, of_tokens)
    for teacher in teachers:
        rows += _token_structure(current, teacher, images, of_tokens)
        rows += _alignment(current, teacher, others, images, of_images, options)
    return rows


def _token_structure(current: Session, teacher: Any, images: Any, metrics: Sequence[str]) -> list[Row]:
    """Return how tokens within an image relate, in the teacher or (None) in the checkpoint; one process measures it."""
    from repa_eval.evaluation.token_structure import spatial, spatial_level

    if not metrics or not current.capture.share.first:
        return []
    shared: dict[str, Any] = {"metrics": metrics, "capture": current.capture}
    if teacher is not None:
        return spatial_level(teacher, images, columns={"run": current.opened.run}, **shared)
    return spatial(current.model, images, **_grid(current), **shared)


def _alignment(
    current: Session,
    teacher: Any,
    others: Sequence[Any],
    images: Any,
    metrics: Sequence[str],
    options: AlignOptions,
) -> list[Row]:
    """Return the alignment of the hidden states with a teacher, and that of the teacher with itself and others."""
    from repa_eval.evaluation.alignment import RAW, Preparation, align, teacher_baseline

    if not metrics:
        return []
    shared: dict[str, Any] = {
        "metrics": metrics,
        "preparation": RAW if options.raw else Preparation(clamp=options.clamp),
        "capture": current.capture,
        "confidence": options.confidence,
    }
    rows = align(current.model, teacher, images, **_grid(current), **shared)
    return rows + teacher_baseline(teacher, others, images, columns={"run": current.opened.run}, **shared)


def _grid(current: Session) -> dict[str, Any]:
    return {"layers": current.layers, "timesteps": current.times, "columns": current.columns}


def _show(rows: Sequence[Row], aligned: int | None) -> str:
    from repa_eval.console.tables import table

    of_layers = [row for row in rows if row.layer is not None and not row.metric.endswith("_permuted")]
    blocks = list(_images_of(rows))
    blocks += [layer_table(of_layers, aligned)] if of_layers else []
    levels = _chance(of_layers)
    levels += [[row.metric, row.note or "", _number(row)] for row in rows if row.layer is None]
    for metric in dict.fromkeys(row.metric for row in rows if row.metric.endswith("_permuted")):
        values = [row.value for row in rows if row.metric == metric and row.value is not None]
        levels.append([metric, "randomly re-paired images, all cells", f"{min(values):.3f} .. {max(values):.3f}"])
    if levels:
        blocks.append(table(["level", "of", "value"], levels))
    return "\n\n".join(blocks)


def _images_of(rows: Sequence[Row]) -> Iterator[str]:
    """Yield a line that says how many images of which data were measured."""
    said = [record for row in rows if (record := row.record or {}).get("num_images")]
    if said:
        split = "" if said[0]["split"] == "all" else f" ({said[0]['split']})"
        yield f"on {said[0]['num_images']} images of {said[0]['data']}{split}"


def _chance(rows: Sequence[Row]) -> list[list[str]]:
    """Return the level of unrelated features for the metrics of shared neighbours, which depends on the images' number.

    It is exact for mutual_knn; CKNNA of unrelated features is somewhat below.
    """
    counts = {row.metric: row.n for row in rows if row.metric in OF_NEIGHBOURS and row.n is not None}
    return [
        [f"{metric} of unrelated features", f"about k/(n - 1), k={NEIGHBOURS}", f"{NEIGHBOURS / (n - 1):.3f}"]
        for metric, n in counts.items()
    ]


def _number(row: Row) -> str:
    if row.value is None:
        return "-"
    return f"{row.value:.3f}" + (f" +- {row.stderr:.3f}" if row.stderr is not None else "")


def _plot(rows: Sequence[Row], file: Path) -> None:
    from repa_eval.reports.drawing.plots import save_maps

    save_maps(rows, file)
