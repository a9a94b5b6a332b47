"""`repa-eval reparam`: a RePaViT encoder's feed-forwards merged, checked for equality, timed and written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repa_eval.commands.shared.checkpoint import open_checkpoint, run_columns
from repa_eval.console.app import Command, example
from repa_eval.console.numbers import COUNT, SEED, Whole
from repa_eval.console.option_groups import flag, option_group
from repa_eval.console.options import (
    LoadingOptions,
    RowsOptions,
    device_option,
    loading_options,
    rows_options,
)
from repa_eval.console.tables import deliver, table
from repa_eval.errors import UserError
from repa_eval.results import Row
from repa_eval.runtime.device import choose_device

if TYPE_CHECKING:
    from repa_eval.reparameterisation.merged import Pair

ENDINGS = (".pt", ".pth")


@dataclass(frozen=True, kw_only=True)
class ReparamOptions:
    """What the merged form is compared with, and how it is timed."""

    data_name: str | None = flag(
        "--data",
        metavar="NAME|KIND:PATH",
        help="real images; default: what the encoder was distilled on, else two photographs",
    )
    num_images: int = flag("--num-images", type=Whole(4), default=600, help="number of real images")
    rounds: int = flag("--rounds", type=COUNT, default=7, help="timed rounds; the forms take turns within a round")
    speed_batch: int = flag("--speed-batch", type=COUNT, default=4, help="images in a timed pass")
    threads: int | None = flag("--threads", type=COUNT, help="CPU threads; default: torch's own choice")
    no_probes: bool = flag("--no-probes", is_flag=True, help="skip the comparison with the original teacher")
    seed: int = flag("--seed", type=SEED, default=0, help="random seed of the noise images")


@click.command(cls=Command, short_help="Merge a RePaViT encoder for inference")
@click.argument("ckpt")
@click.option(
    "--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="write the merged encoder here (.pt)"
)
@option_group("options", ReparamOptions)
@device_option
@loading_options
@rows_options
@example("repa-eval reparam runs/digits-repavit/checkpoints/0001500.pt --out merged.pt")
def command(
    ckpt: str, out: Path, options: ReparamOptions, device: str, loading: LoadingOptions, output: RowsOptions
) -> None:
    """Merge a RePaViT encoder's feed-forwards, and report what that changes.

    Opens the training form, ours or published; compares both forms on random and on real images; times them and the
    network that they replace; where that is a teacher we can open, compares every block and the probes with it. The
    merged file works anywhere a teacher is expected. Merging cannot be undone: keep the training checkpoint.
    """
    import torch

    from repa_eval.interfaces.recorded_names import recorded_data
    from repa_eval.reparameterisation.measure import measure, pair_of

    _check_out(out, ckpt)
    opened = open_checkpoint(ckpt, loading)
    if options.threads:
        torch.set_num_threads(options.threads)
    pair, notes = pair_of(opened, choose_device(device))
    rows = measure(
        pair,
        where=str(opened.path),
        data_name=options.data_name or recorded_data(opened.recipe.get("data"), opened.path, "--data"),
        num_images=options.num_images,
        speed_batch=options.speed_batch,
        rounds=options.rounds,
        with_probes=not options.no_probes,
        seed=options.seed,
        columns=run_columns(opened),
    )
    _write(out, opened, pair)
    deliver(rows, output, show=lambda shown: _show(shown, out, notes))


def _check_out(out: Path, ckpt: str) -> None:
    if out.suffix not in ENDINGS:
        raise UserError(f"--out {out}: choose a file that ends in {' or '.join(ENDINGS)}")
    if out.exists() and Path(ckpt).exists() and out.samefile(ckpt):
        raise UserError(f"--out {out} is the checkpoint itself, which would be overwritten; choose another file")


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


def _show(rows: Sequence[Row], out: Path, notes: Sequence[str]) -> str:
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
    return "\n\n".join([*lines, *(f"note: {note}" for note in notes), str(out)])


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
