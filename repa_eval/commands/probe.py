"""`repa-eval probe`: what a linear or k-NN probe reads out of a checkpoint's hidden states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from repa_eval.commands.shared.checkpoint import data_of
from repa_eval.commands.shared.session import Session, caching, session
from repa_eval.console.app import Command, example
from repa_eval.console.options import computing, gridded, measuring, opening, parse_floats
from repa_eval.console.tables import deliver, layer_table, table
from repa_eval.results import Row

if TYPE_CHECKING:
    from repa_eval.probes.batch_norm import Training

F = TypeVar("F", bound=Callable[..., Any])
MOST_CLASSES = 20  # more of them fill no readable table
MOST_PAIRS = 20


def fitting(function: F) -> F:
    """Add the options that say which probes are fitted, and how."""
    for decorator in (
        click.option(
            "--probe-lr", help="linear-bn: learning rates, of which val chooses; default 0.001 to 1, paper .001"
        ),
        click.option("--probe-batch-size", type=int, help="linear-bn: images per step; default 128, paper 16384"),
        click.option(
            "--probe-epochs", type=int, help="linear-bn: passes over the training images; default 90, as paper"
        ),
        click.option(
            "--confusion", is_flag=True, help="which class was taken for which: shown, and in the rows' notes"
        ),
        click.option(
            "--shots", type=int, metavar="K", help="fit on K training images of each class, drawn by the seed"
        ),
        click.option(
            "--probes",
            "kinds",
            default="linear,knn",
            show_default=True,
            help="of linear (ridge), knn, linear-bn (batch norm, Adam: the paper's), logistic",
        ),
    ):
        function = decorator(function)
    return function


@click.command(cls=Command)
@opening
@gridded
@fitting
@caching
@computing
@measuring
@example("repa-eval probe --ckpt runs/digits-repa/checkpoints/0001500.pt --layer 3")
def command(ckpt: str, layers: str, as_json: bool, rows: Path | None, **given: Any) -> None:
    """Probe hidden states for the class: linear and k-NN accuracy per layer and timestep.

    Fitted on training images, its setting chosen on validation images, scored on test images that training never saw.
    The teacher's own score is the reference level.
    """
    with session(ckpt, layers, "probe", given) as current:
        measured = _measure(current, **given)
        if current.capture.share.first:
            deliver(measured, to=rows, as_json=as_json, show=lambda shown: _show(shown, current.aligned))


def _measure(current: Session, **given: Any) -> list[Row]:
    from repa_eval.interfaces.teacher import load_teacher, split_names
    from repa_eval.probes import grid
    from repa_eval.probes.splits import probe_splits

    opened = current.opened
    splits = probe_splits(data_of(opened, given["data_name"]))
    if given["shots"] is not None:
        splits = splits.few(given["shots"], seed=given["seed"])
    fit: dict[str, Any] = {
        "kinds": list(dict.fromkeys(kind.strip() for kind in given["kinds"].split(","))),
        "training": _training(current.device, given),
        "capture": current.capture,
        "with_confusion": given["confusion"],
    }
    rows = grid.probe(
        current.model, splits, layers=current.layers, timesteps=current.times, columns=current.columns, **fit
    )
    for name in split_names(given["teacher_name"] or opened.option("enc_type") or ""):
        teacher = load_teacher(name).to(current.device)
        rows += grid.teacher_level(teacher, splits, columns={"run": opened.run}, **fit)
    return rows


def _training(device: str, given: dict[str, Any]) -> Training:
    """Return how linear-bn is trained: what was given, else the defaults of Training."""
    from repa_eval.probes.batch_norm import Training

    rates = given["probe_lr"] and tuple(parse_floats(given["probe_lr"], "--probe-lr"))
    said = {"epochs": given["probe_epochs"], "batch_size": given["probe_batch_size"], "rates": rates}
    return Training(device=device, **{key: value for key, value in said.items() if value is not None})


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
