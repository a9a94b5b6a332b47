"""`repa-eval align`: alignment of a checkpoint's hidden states with a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from repa_eval.commandline import (
    OneLine,
    choose_device,
    computing,
    deliver,
    example,
    measuring,
    opening,
    parse_floats,
    table,
)
from repa_eval.errors import UserError
from repa_eval.results import Row

TIMESTEPS = "0.05,0.1,0.2,0.3,0.5"


@click.command(cls=OneLine)
@opening
@click.option("--layer", "--layers", "layers", default="all", show_default=True, help="block numbers, 1-based, or all")
@click.option("--timesteps", default=TIMESTEPS, show_default=True, help="times in [0, 1], 1 = noise")
@click.option("--metrics", default="cknna,cka", show_default=True, help="see `repa-eval list metrics`")
@click.option("--teacher", "teacher_name", help="default: the teacher that the checkpoint was trained with")
@click.option("--teacher-weights", type=click.Path(path_type=Path), help="file that replaces the teacher's own weights")
@click.option("--data", "data_name", help="default: the data that the checkpoint was trained on")
@click.option("--split", help="default: test images that training never saw")
@click.option("--num-images", type=click.IntRange(min=4), default=600, show_default=True, help="images")
@click.option("--raw", is_flag=True, help="do not L2-normalise the features first")
@click.option(
    "--plot", type=click.Path(dir_okay=False, path_type=Path), help="draw the map to this file (png, svg, pdf)"
)
@computing
@measuring
@example("repa-eval align --ckpt runs/digits-repa/checkpoints/0001500.pt --layer 3")
def command(
    ckpt: str, weights: str, layers: str, as_json: bool, rows: Path | None, plot: Path | None, **given: Any
) -> None:
    """Measure CKNNA, CKA and others between hidden states and a teacher, per layer and timestep.

    All layers are read in one forward pass per timestep.
    """
    from repa_eval import checkpoints

    times = parse_floats(given["timesteps"], "--timesteps")
    opened = checkpoints.load(ckpt, weights=weights)
    measured = _measure(opened, _layers(layers, opened), times, **given)
    if plot is not None:
        _plot(measured, plot)
    deliver(measured, to=rows, as_json=as_json, show=lambda shown: _show(shown, opened.option("encoder_depth")))


def _measure(opened: Any, layers: list[int], times: list[float], **given: Any) -> list[Row]:
    import torch

    from repa_eval.align import align
    from repa_eval.config import from_dict
    from repa_eval.data._registry import load_data
    from repa_eval.interpolant import Interpolant
    from repa_eval.teachers._registry import load_teacher, split_names

    device = choose_device(given["device"])
    recorded = split_names(opened.option("enc_type") or "")
    names = split_names(given["teacher_name"] or "") or recorded
    if not names:
        raise UserError(f"{opened.path} was trained without a teacher: name one with --teacher, such as digits-vit")
    data_name = given["data_name"] or opened.recipe.get("data")
    split = given["split"] or ("test-large" if data_name == "digits" else "val")
    images = load_data(data_name, split).head(given["num_images"])
    path = from_dict(Interpolant(), opened.option("interpolant") or {})
    columns = {
        "run": opened.run,
        "system": opened.systems[0] if opened.systems else None,
        "method": opened.recipe.get("method"),
        "step": opened.step,
        "weights": opened.weights,
        "train_seed": opened.recipe.get("seed"),
    }
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
            batch_size=given["batch_size"],
            columns=columns,
        )
    return rows


def _layers(text: str, opened: Any) -> list[int]:
    """Return the block numbers meant by "all" or "3,4"; UserError if the model does not have one."""
    depth = getattr(opened.model.config, "depth", 0)
    if not hasattr(opened.model, "null_label"):
        raise UserError(f"{opened.path} holds {opened.model_name}, which is no diffusion model: nothing to align")
    if text == "all":
        return list(range(1, depth + 1))
    try:
        layers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--layer {text!r}: expected block numbers joined by commas, or all") from error
    aligned = opened.option("encoder_depth")
    for layer in layers:
        if not 1 <= layer <= depth:
            hint = f"; its aligned block is {aligned}" if aligned else ""
            raise UserError(f"layer {layer}: this model has blocks 1..{depth}{hint}")
    return layers


def _show(rows: Sequence[Row], aligned: int | None) -> str:
    """Return a table per metric: a line per timestep, a column per layer, the best layer of a line marked."""
    from repa_eval.results import records_of

    records = records_of(rows)
    groups: dict[tuple[str, str | None], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.metric, row.protocol), []).append(row)
    blocks = []
    for (metric, protocol), members in groups.items():
        teacher = records.get(protocol or "", {}).get("teacher", "")
        layers = sorted({row.layer for row in members if row.layer is not None})
        body = []
        for t in sorted({row.timestep for row in members if row.timestep is not None}):
            values = {row.layer: row.value for row in members if row.timestep == t}
            finite = [value for value in values.values() if value is not None]
            best = max(finite) if finite and len(layers) > 1 else None
            body.append([f"{t:g}", *(_cell(values.get(layer), best) for layer in layers)])
        header = ["t", *(f"block {layer}{'*' if layer == aligned else ''}" for layer in layers)]
        title = f"{metric} with {teacher}, n={members[0].n}, t=1 is noise" + (", * aligned block" if aligned else "")
        blocks.append(f"{title}\n{table(header, body)}")
    return "\n\n".join(blocks)


def _cell(value: float | None, best: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}{'<' if best is not None and value == best else ' '}"


def _plot(rows: Sequence[Row], file: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from repa_eval.reports.plots import save_maps

    save_maps(rows, file)
