"""`repa-eval align`: alignment of a checkpoint's hidden states with a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from repa_eval.commandline import (
    OneLine,
    block_numbers,
    choose_device,
    class_tokens_of,
    computing,
    data_of,
    deliver,
    example,
    gridded,
    layer_table,
    measuring,
    open_checkpoint,
    opening,
    parse_floats,
    run_columns,
)
from repa_eval.errors import UserError
from repa_eval.results import Row


@click.command(cls=OneLine)
@opening
@gridded
@click.option("--metrics", default="cknna,cka", show_default=True, help="see `repa-eval list metrics`")
@click.option("--teacher-weights", type=click.Path(path_type=Path), help="file that replaces the teacher's own weights")
@click.option("--split", help="default: test images that training never saw")
@click.option("--num-images", type=click.IntRange(min=4), default=600, show_default=True, help="images")
@click.option("--raw", is_flag=True, help="do not L2-normalise the features first")
@click.option(
    "--plot", type=click.Path(dir_okay=False, path_type=Path), help="draw the map to this file (png, svg, pdf)"
)
@computing
@measuring
@example("repa-eval align --ckpt runs/digits-repa/checkpoints/0001500.pt --layer 3")
def command(ckpt: str, layers: str, as_json: bool, rows: Path | None, plot: Path | None, **given: Any) -> None:
    """Measure CKNNA, CKA and others between hidden states and a teacher, per layer and timestep.

    All layers are read in one forward pass per timestep.
    """
    times = parse_floats(given["timesteps"], "--timesteps")
    opened = open_checkpoint(ckpt, given)
    measured = _measure(opened, block_numbers(layers, opened), times, **given)
    if plot is not None:
        _plot(measured, plot)
    deliver(measured, to=rows, as_json=as_json, show=lambda shown: layer_table(shown, opened.option("encoder_depth")))


def _measure(opened: Any, layers: list[int], times: list[float], **given: Any) -> list[Row]:
    import torch

    from repa_eval.align import align
    from repa_eval.config import from_dict
    from repa_eval.data._registry import load_data
    from repa_eval.interpolant import Interpolant
    from repa_eval.monitors import unseen_split
    from repa_eval.teachers._registry import load_teacher, split_names

    device = choose_device(given["device"])
    recorded = split_names(opened.option("enc_type") or "")
    names = split_names(given["teacher_name"] or "") or recorded
    if not names:
        raise UserError(f"{opened.path} records no teacher: name one with --teacher, such as digits-vit")
    data_name = data_of(opened, given["data_name"])
    split = given["split"] or unseen_split(data_name)
    images = load_data(data_name, split).head(given["num_images"])
    path = from_dict(Interpolant(), opened.option("interpolant") or {})
    columns = run_columns(opened)
    rows: list[Row] = []
    for name in names:
        teacher = load_teacher(name, given["teacher_weights"]).to(device)
        rows += align(
            opened.model.to(device=device, dtype=getattr(torch, given["dtype"])),
            teacher,
            images,
            layers=layers,
            timesteps=times,
            metrics=[metric.strip() for metric in given["metrics"].split(",")],
            interpolant=path,
            normalise=not given["raw"],
            seed=given["seed"],
            class_tokens=class_tokens_of(opened, device, given["teacher_name"]),
            batch_size=given["batch_size"],
            columns=columns,
        )
    return rows


def _plot(rows: Sequence[Row], file: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from repa_eval.reports.plots import save_maps

    save_maps(rows, file)
