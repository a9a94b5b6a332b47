"""`repa-eval probe`: what a linear or k-NN probe reads out of a checkpoint's hidden states."""

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
from repa_eval.results import Row


@click.command(cls=OneLine)
@opening
@gridded
@click.option("--probes", "kinds", default="linear,knn", show_default=True, help="linear, knn or both")
@computing
@measuring
@example("repa-eval probe --ckpt runs/digits-repa/checkpoints/0001500.pt --layer 3")
def command(ckpt: str, layers: str, as_json: bool, rows: Path | None, **given: Any) -> None:
    """Probe hidden states for the class: linear and k-NN accuracy per layer and timestep.

    Fitted on training images, its setting chosen on validation images, scored on test images that training never saw.
    The teacher's own score is the reference level.
    """
    times = parse_floats(given["timesteps"], "--timesteps")
    opened = open_checkpoint(ckpt, given)
    measured = _measure(opened, block_numbers(layers, opened), times, **given)
    deliver(measured, to=rows, as_json=as_json, show=lambda shown: _show(shown, opened.option("encoder_depth")))


def _measure(opened: Any, layers: list[int], times: list[float], **given: Any) -> list[Row]:
    import torch

    from repa_eval.config import from_dict
    from repa_eval.interpolant import Interpolant
    from repa_eval.monitors import probe_splits
    from repa_eval.probes import grid
    from repa_eval.teachers._registry import load_teacher, split_names

    device = choose_device(given["device"])
    kinds = [kind.strip() for kind in given["kinds"].split(",")]
    splits = probe_splits(data_of(opened, given["data_name"]))
    rows = grid.probe(
        opened.model.to(device=device, dtype=getattr(torch, given["dtype"])),
        splits,
        layers=layers,
        timesteps=times,
        kinds=kinds,
        interpolant=from_dict(Interpolant(), opened.option("interpolant") or {}),
        seed=given["seed"],
        class_tokens=class_tokens_of(opened, device, given["teacher_name"]),
        batch_size=given["batch_size"],
        columns=run_columns(opened),
    )
    for name in split_names(given["teacher_name"] or opened.option("enc_type") or ""):
        teacher = load_teacher(name).to(device)
        rows += grid.teacher_level(
            teacher, splits, kinds=kinds, batch_size=given["batch_size"], columns={"run": opened.run}
        )
    return rows


def _show(rows: Sequence[Row], aligned: int | None) -> str:
    levels = [row for row in rows if row.layer is None]
    text = layer_table([row for row in rows if row.layer is not None], aligned)
    lines = [f"{row.metric}: {row.value:.3f}" for row in levels if row.value is not None]
    return "\n\n".join(filter(None, [text, "\n".join(lines)]))
