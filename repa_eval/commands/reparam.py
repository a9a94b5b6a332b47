"""`repa-eval reparam`: a RePaViT encoder's feed-forwards merged, proved equal, timed and written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repa_eval.commands.shared.checkpoint import open_checkpoint, run_columns
from repa_eval.console.app import Command, example
from repa_eval.console.options import choose_device, measuring, recognising
from repa_eval.console.tables import deliver, table
from repa_eval.errors import Failure, UserError
from repa_eval.results import Row

if TYPE_CHECKING:
    from repa_eval.reparameterisation.merged import Pair

LIMIT = 1e-4  # relative; rounding of float32 alone is 1e-7 to 1e-6
ENDINGS = (".pt", ".pth")


@click.command(cls=Command)
@click.argument("ckpt")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="file to write, .pt")
@click.option("--data", "data_name", help="real images; default: what it was distilled on, else two photographs")
@click.option("--num-images", type=click.IntRange(min=4), default=600, show_default=True, help="real images")
@click.option("--rounds", type=click.IntRange(min=1), default=7, show_default=True, help="timed; the forms take turns")
@click.option(
    "--speed-batch", type=click.IntRange(min=1), default=4, show_default=True, help="images per timed forward"
)
@click.option("--threads", type=click.IntRange(min=1), help="of the CPU; default: as torch finds them")
@click.option("--no-probes", is_flag=True, help="leave out the comparison with the original teacher")
@click.option("--seed", type=int, default=0, show_default=True, help="seed of the random images")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N")
@recognising
@measuring
@example("repa-eval reparam runs/digits-repavit/checkpoints/0001500.pt --out merged.pt")
def command(ckpt: str, out: Path, as_json: bool, rows: Path | None, **given: Any) -> None:
    """Merge a RePaViT encoder's feed-forwards, and say what that changes.

    Opens the training form, ours or published; compares both forms on random and on real images; times them and the
    network that they replace; where that is a teacher we can open, compares every block and the probes with it. The
    merged file is a teacher wherever one is named. Merging cannot be undone: keep the training checkpoint.
    """
    if out.suffix not in ENDINGS:
        raise UserError(f"--out {out}: choose a file that ends in {' or '.join(ENDINGS)}")
    if out.exists() and Path(ckpt).exists() and out.samefile(ckpt):
        raise UserError(f"--out {out} is the checkpoint itself, which would be lost: choose another file")
    opened = open_checkpoint(ckpt, given)
    pair, measured, notes = _measure(opened, given)
    _write(out, opened, pair)
    facts = {"out": str(out), "notes": notes}
    if as_json:
        deliver(measured, to=rows, as_json=True, show=lambda shown: "")
        return
    deliver(measured, to=rows, as_json=False, show=lambda shown: _show(shown, facts))


def _measure(opened: Any, given: Mapping[str, Any]) -> tuple[Pair, list[Row], list[str]]:
    import torch

    from repa_eval.reparameterisation import merged as merging

    if given["threads"]:
        torch.set_num_threads(given["threads"])
    pair, notes = _pair(opened, choose_device(given["device"]))
    columns = run_columns(opened)
    config, recorded = pair.network.config, opened.recipe.get("data")
    images = merging.images_of(config, given["data_name"] or recorded, given["num_images"])
    measured = merging.equality(pair, images, seed=given["seed"], columns=columns)
    for row in measured:
        if row.value is None or row.value > LIMIT:
            raise Failure(f"{opened.path}: the merged form differs by {row.value} ({row.metric}); nothing was written")
    measured += merging.sizes(pair, columns=columns)
    measured += merging.speed(pair, batch_size=given["speed_batch"], rounds=given["rounds"], columns=columns)
    data_name = given["data_name"] or recorded
    if pair.original is not None and data_name and not given["no_probes"]:
        shared: dict[str, Any] = {"batch_size": merging.BATCH, "columns": columns}
        measured += merging.likeness(pair, images, **shared)
        measured += merging.probes(pair, data_name, **shared)
    if opened.facts.get("idle_ratio_from") == "published size":
        ratio = pair.network.facts()["idle_ratio"]
        notes.append(
            f"idle ratio {ratio} is that of the published size: the file does not record it (--set idle_ratio=R)"
        )
    return pair, measured, notes


def _pair(opened: Any, device: str) -> tuple[Pair, list[str]]:
    """Return both forms with the original teacher, and why that is missing where it cannot be opened here."""
    from repa_eval.models.shared.encoder import Encoder
    from repa_eval.reparameterisation import merged as merging

    if not isinstance(opened.network, Encoder):
        raise UserError(f"{opened.path} holds {opened.model_name}: only RePaViT's encoders are merged")
    try:
        merged = opened.network.merged()
    except UserError as error:
        raise UserError(f"{opened.path}: {error}") from error
    original, notes = None, []
    try:
        original = merging.original_of(opened)
    except UserError as error:
        notes.append(f"not compared with the original: {error}")
    original = original.to(device) if original is not None else None
    return merging.Pair(opened.network.to(device), merged.to(device), original, device), notes


def _write(out: Path, opened: Any, pair: Pair) -> None:
    import dataclasses
    import io

    import torch

    from repa_eval.checkpoints.safetensors_folder import describe
    from repa_eval.runtime.files import write_atomic

    record = describe(dataclasses.replace(opened, models=(pair.merged.cpu(),)))
    buffer = io.BytesIO()
    torch.save({"model": dict(pair.merged.state_dict()), "record": record}, buffer)
    write_atomic(out, buffer.getvalue())


def _show(rows: Sequence[Row], facts: Mapping[str, Any]) -> str:
    """Return what a person reads: equality, sizes and times by form, what is left of the original."""
    values = {row.metric: row.value for row in rows if row.layer is None}
    threads = _threads(rows)
    lines = [
        f"merged form against training form, relative difference: {values['merge_difference_random']:.1e} on random "
        f"images, {values['merge_difference_real']:.1e} on real ones"
    ]
    body = []
    for form in ("original", "training", "merged"):
        if f"ms_per_image_{form}" not in values:
            continue
        cells = [f"{values[f'ms_per_image_{form}']:.2f}", _millions(values.get(f"num_parameters_{form}"))]
        body.append([form, *cells, *(_number(values.get(f"{m}_{form}")) for m in ("probe_accuracy", "knn_accuracy"))])
    lines.append(table(["form", "ms per image", "parameters", "linear probe", "k-NN"], body))
    ratios = {"original": values.get("speedup"), "training form": values.get("speedup_training")}
    told = [f"x{ratio:.2f} the speed of the {name}" for name, ratio in ratios.items() if ratio is not None]
    lines.append(f"merged: {', '.join(told)} (median of interleaved rounds, {threads})")
    blocks = [row for row in rows if row.layer is not None]
    if blocks:
        layers = sorted({row.layer for row in blocks if row.layer is not None})
        metrics = dict.fromkeys(row.metric for row in blocks)
        known = {(row.metric, row.layer): row.value for row in blocks}
        body = [[m.removesuffix("_merged"), *(_number(known.get((m, layer))) for layer in layers)] for m in metrics]
        lines.append(table(["merged against original", *(f"block {layer}" for layer in layers)], body))
    return "\n\n".join([*lines, *(f"note: {note}" for note in facts["notes"]), str(facts["out"])])


def _threads(rows: Sequence[Row]) -> str:
    from repa_eval.results import records_of

    record = next(r for r in records_of(rows).values() if "threads" in r)
    compared = f", original: {record['original']}" if record["original"] else ""
    threads = f"{record['threads']} thread{'s' if record['threads'] > 1 else ''}"
    return f"{threads}, {record['device']}, batch {record['batch_size']}{compared}"


def _millions(count: float | None) -> str:
    return "-" if count is None else f"{count / 1e6:.2f} M"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
