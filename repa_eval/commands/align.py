"""`repa-eval align`: alignment of a checkpoint's hidden states with a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from repa_eval.commands.shared.checkpoint import data_of
from repa_eval.commands.shared.session import Session, caching, session
from repa_eval.console.app import Command, example
from repa_eval.console.options import computing, gridded, measuring, opening
from repa_eval.console.tables import deliver, layer_table
from repa_eval.errors import UserError
from repa_eval.results import Row


@click.command(cls=Command)
@opening
@gridded
@click.option("--metrics", default="cknna,cka", show_default=True, help="see `repa-eval list metrics`")
@click.option("--teacher-weights", type=click.Path(path_type=Path), help="file that replaces the teacher's own weights")
@click.option("--split", help="default: test images that training never saw")
@click.option("--num-images", type=click.IntRange(min=4), default=600, show_default=True, help="images")
@click.option("--raw", is_flag=True, help="features as they are: neither clamped nor L2-normalised")
@click.option(
    "--clamp", type=click.FloatRange(0.0, 1.0), default=0.95, show_default=True, help="quantile; 1 = no clamp"
)
@click.option("--pool", type=click.Choice(["mean", "cls"]), default="mean", show_default=True, help="of the tokens")
@click.option("--against", default="", help="other teachers, joined by commas: their alignment as a reference level")
@click.option("--ci", "confidence", is_flag=True, help="standard errors, and the level when pairs are torn apart")
@click.option(
    "--plot", type=click.Path(dir_okay=False, path_type=Path), help="draw the map to this file (png, svg, pdf)"
)
@caching
@computing
@measuring
@example("repa-eval align --ckpt runs/digits-repa/checkpoints/0001500.pt --layer 3")
def command(ckpt: str, layers: str, as_json: bool, rows: Path | None, plot: Path | None, **given: Any) -> None:
    """Measure CKNNA, CKA and others between hidden states and a teacher, per layer and timestep.

    All layers are read in one forward pass per timestep.
    """
    with session(ckpt, layers, "align", given) as current:
        measured = _measure(current, **given)
        if current.capture.share.first:
            if plot is not None:
                _plot([row for row in measured if row.layer is not None], plot)
            deliver(measured, to=rows, as_json=as_json, show=lambda shown: _show(shown, current.aligned))


def _measure(current: Session, **given: Any) -> list[Row]:
    from repa_eval.evaluation.alignment import RAW, Preparation, align, level
    from repa_eval.evaluation.token_structure import spatial, spatial_level
    from repa_eval.interfaces.images import load_data, unseen_split
    from repa_eval.interfaces.metric import SPATIAL
    from repa_eval.interfaces.teacher import load_teacher, split_names

    opened = current.opened
    names = split_names(given["teacher_name"] or opened.option("enc_type") or "")
    if not names:
        raise UserError(f"{opened.path} records no teacher: name one with --teacher, such as digits-vit")
    data_name = data_of(opened, given["data_name"])
    images = load_data(data_name, given["split"] or unseen_split(data_name)).head(given["num_images"])
    wanted = [metric.strip() for metric in given["metrics"].split(",")]
    of_tokens = [name for name in wanted if name in SPATIAL.names()]
    metrics = [name for name in wanted if name not in of_tokens]
    preparation = RAW if given["raw"] else Preparation(clamp=given["clamp"])
    shared: dict[str, Any] = {
        "metrics": metrics,
        "preparation": preparation,
        "capture": current.capture,
        "confidence": given["confidence"],
    }
    others = [load_teacher(name).to(current.device) for name in split_names(given["against"])]
    rows: list[Row] = []
    grid: dict[str, Any] = {"layers": current.layers, "timesteps": current.times, "columns": current.columns}
    if of_tokens and current.capture.share.first:
        rows += spatial(current.model, images, metrics=of_tokens, capture=current.capture, **grid)
    for name in names:
        teacher = load_teacher(name, given["teacher_weights"]).to(current.device)
        own = {"run": opened.run}
        if of_tokens and current.capture.share.first:
            rows += spatial_level(teacher, images, metrics=of_tokens, capture=current.capture, columns=own)
        if metrics:
            rows += align(current.model, teacher, images, **grid, **shared)
            rows += level(teacher, others, images, columns=own, **shared)
    return rows


def _show(rows: Sequence[Row], aligned: int | None) -> str:
    from repa_eval.console.tables import table

    of_layers = [row for row in rows if row.layer is not None and not row.metric.endswith("_torn")]
    blocks = [layer_table(of_layers, aligned)] if of_layers else []
    levels = [[row.metric, row.note or "", _number(row)] for row in rows if row.layer is None]
    for metric in dict.fromkeys(row.metric for row in rows if row.metric.endswith("_torn")):
        values = [row.value for row in rows if row.metric == metric and row.value is not None]
        levels.append([metric, "pairs torn apart, all cells", f"{min(values):.3f} .. {max(values):.3f}"])
    if levels:
        blocks.append(table(["level", "of", "value"], levels))
    return "\n\n".join(blocks)


def _number(row: Row) -> str:
    if row.value is None:
        return "-"
    return f"{row.value:.3f}" + (f" +- {row.stderr:.3f}" if row.stderr is not None else "")


def _plot(rows: Sequence[Row], file: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from repa_eval.reports.drawing.plots import save_maps

    save_maps(rows, file)
