"""`repa-eval probe`: what a linear or k-NN probe reads out of a checkpoint's hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from repa_eval.commands.shared.checkpoint import data_of
from repa_eval.commands.shared.measured_data import encoded
from repa_eval.commands.shared.session import CacheOptions, Session, SessionOptions, cache_options, session
from repa_eval.console.app import Command, example
from repa_eval.console.numbers import COUNT
from repa_eval.console.option_groups import flag, option_group
from repa_eval.console.options import (
    CheckpointOptions,
    ComputeOptions,
    GridOptions,
    LatentOptions,
    RowsOptions,
    checkpoint_options,
    compute_options,
    grid_options,
    latent_options,
    parse_floats,
    rows_options,
)
from repa_eval.console.tables import deliver, layer_table, table
from repa_eval.errors import UserError
from repa_eval.results import Row

if TYPE_CHECKING:
    from repa_eval.probes.batch_norm import Training

MOST_CLASSES = 20  # more of them fill no readable table
MOST_PAIRS = 20


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """Which probes are fitted, and how."""

    kinds: str = flag(
        "--probes",
        metavar="NAME[,NAME]",
        default="linear,knn",
        help="linear (ridge), knn, linear-bn (batch norm and Adam, as in the paper), logistic",
    )
    shots: int | None = flag(
        "--shots", type=COUNT, metavar="K", help="fit on K training images of each class, drawn with --seed"
    )
    test_data: str | None = flag(
        "--test-data",
        metavar="NAME|KIND:PATH",
        help="test images, where --data names training images alone; without it, data without splits are divided by "
        "--seed",
    )
    confusion: bool = flag(
        "--confusion", is_flag=True, help="show which class is taken for which, and keep it in the rows' notes"
    )
    probe_epochs: int | None = flag(
        "--probe-epochs", type=COUNT, help="linear-bn: passes over the training images; default 90, as in the paper"
    )
    probe_batch_size: int | None = flag(
        "--probe-batch-size", type=COUNT, help="linear-bn: images per step; default 128 (paper: 16384)"
    )
    probe_lr: str | None = flag(
        "--probe-lr",
        metavar="RATE[,RATE]",
        help="linear-bn: learning rates to choose from on validation images; default 0.001 to 1 (paper: 0.001)",
    )


@click.command(cls=Command, short_help="Probe hidden states for the class")
@checkpoint_options
@grid_options
@latent_options
@option_group("probes", ProbeOptions)
@cache_options
@compute_options
@rows_options
@example("repa-eval probe --ckpt runs/digits-repa/checkpoints/0001500.pt --layer 3")
def command(
    checkpoint: CheckpointOptions,
    grid: GridOptions,
    latents: LatentOptions,
    probes: ProbeOptions,
    cache: CacheOptions,
    compute: ComputeOptions,
    output: RowsOptions,
) -> None:
    """Probe hidden states for the class: linear and k-NN accuracy per layer and timestep.

    Fitted on training images, its setting chosen on validation images, scored on test images: those of the data's own
    splits, of --test-data, or of a division by --seed. The teacher's own score is the reference level.
    """
    with session(SessionOptions("probe", checkpoint, grid, latents, cache, compute, probes)) as current:
        rows = _measure(current, grid, latents, probes)
        if current.capture.share.first:
            deliver(rows, output, show=lambda shown: _show(shown, current.aligned))


def _measure(current: Session, grid: GridOptions, latents: LatentOptions, options: ProbeOptions) -> list[Row]:
    from repa_eval.probes.grid import probe, teacher_level
    from repa_eval.probes.splits import probe_splits
    from repa_eval.sampling.vae import open_vae

    opened = current.opened
    splits = probe_splits(
        data_of(opened, grid.data_name), options.test_data, resolution=latents.resolution, seed=current.capture.seed
    )
    if options.shots is not None:
        splits = splits.few(options.shots, seed=current.capture.seed)
    vae = None if latents.vae is None else open_vae(latents.vae, current.device)
    where: dict[str, Any] = {"cache": current.capture.cache, "device": current.device, "vae": vae}
    splits = splits.mapped(lambda images: encoded(images, current.model, latents, **where))
    for images in splits.parts().values():
        current.check(images)
    fit: dict[str, Any] = {
        "kinds": list(dict.fromkeys(kind.strip() for kind in options.kinds.split(","))),
        "training": _training(current.device, options),
        "capture": current.capture,
        "with_confusion": options.confusion,
    }
    rows = probe(current.model, splits, layers=current.layers, timesteps=current.times, columns=current.columns, **fit)
    for teacher in current.teachers(grid, splits.test):
        rows += teacher_level(teacher, splits, columns={"run": opened.run}, **fit)
    return rows


def _training(device: str, options: ProbeOptions) -> Training:
    """Return how linear-bn is trained: as the options say, else the defaults of Training."""
    from repa_eval.probes.batch_norm import Training

    rates = None if options.probe_lr is None else tuple(parse_floats(options.probe_lr, "--probe-lr"))
    if rates is not None and min(rates) <= 0:
        raise UserError(f"--probe-lr {options.probe_lr!r}: a learning rate is above 0")
    chosen: dict[str, Any] = {"epochs": options.probe_epochs, "batch_size": options.probe_batch_size, "rates": rates}
    return Training(device=device, **{key: value for key, value in chosen.items() if value is not None})


def _show(rows: Sequence[Row], aligned: int | None) -> str:
    levels = [row for row in rows if row.layer is None]
    cells = [row for row in rows if row.layer is not None]
    lines = [f"{row.metric}: {row.value:.3f}" for row in levels if row.value is not None]
    return "\n\n".join(filter(None, [layer_table(cells, aligned), "\n".join(lines), *_confusions(rows)]))


def _confusions(rows: Sequence[Row]) -> list[str]:
    """Return a table for each metric whose rows hold the confusion: that of its most accurate cell."""
    from repa_eval.probes.confusion import from_note, most_confused

    found = []
    for metric in dict.fromkeys(row.metric for row in rows):
        cells = [row for row in rows if row.metric == metric]
        row = max(cells, key=lambda row: row.value or 0.0)
        counts = from_note(row.note)
        if not counts:
            continue
        classes = sorted({*counts, *(taken for own in counts.values() for taken in own)})
        cell = "" if row.layer is None else f", block {row.layer}, t={row.timestep:g}"
        of = f", the best of {len(cells)} cells" if len(cells) > 1 else ""
        title = f"{metric} {row.value:.3f}{cell}, n={row.n}{of}"
        if len(classes) <= MOST_CLASSES:
            header = ["class", *classes, "right"]
            body = [
                [true, *(own.get(taken, ".") for taken in classes), _right(true, own)] for true, own in counts.items()
            ]
            found.append(f"{title}; a line per class, a column per answer\n{table([*map(str, header)], body)}")
        else:
            pairs = [
                [true, taken, count, f"{share:.2f}"] for true, taken, count, share in most_confused(counts, MOST_PAIRS)
            ]
            found.append(f"{title}; most frequent mistakes\n{table(['class', 'answer', 'images', 'share'], pairs)}")
    return found


def _right(true: int, answers: dict[int, int]) -> str:
    return f"{answers.get(true, 0) / sum(answers.values()):.2f}"
