"""What a run writes of itself: recipe.yaml, run.json, the table of results and the training curves."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
import yaml

from repa_eval import __version__, results
from repa_eval.errors import first_line
from repa_eval.results import CURVES, Row, make_row
from repa_eval.runtime.claims import Claims
from repa_eval.runtime.files import sync, write_atomic
from repa_eval.runtime.run_record import FAILED, RUNNING, write_record
from repa_eval.train.recipe import Recipe

INTERRUPTED = {"status": "interrupted"}

# name of a training curve -> (which values are better, half a sentence on it, as the report explains it)
MEANINGS = {
    "loss": ("lower", "sum of the weighted training terms"),
    "denoising_loss": ("lower", "velocity (denoising) term"),
    "proj_loss": ("lower", "alignment term"),
    "contrastive_loss": ("lower", "contrast of the caption with the others of the batch"),
    "grad_norm": (None, "norm of the gradient before clipping"),
    "learning_rate": (None, "learning rate"),
    "train_seconds": (None, "training time of the run on its machine, evaluation excluded"),
}


class Writer:
    """Appends rows once: a resumed run repeats steps after its last checkpoint, and their rows are there already.

    A context: where training ends by an error, run.json says so. step: updates made so far. seconds: training time up
    to that step, as far as the curves tell.
    """

    def __init__(self, run: Path, recipe: Recipe, record: Mapping[str, Any], step: int) -> None:
        self.run = run
        self.recipe = recipe
        self.record = dict(record)
        self.claims = Claims(run)
        self._running = False
        self.seconds, self._ahead = _look_ahead(run / CURVES, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if not self._running or not isinstance(error, Exception | KeyboardInterrupt):
            return
        how = {"status": FAILED, "reason": first_line(error)} if isinstance(error, Exception) else INTERRUPTED
        with contextlib.suppress(OSError):  # the disk may be full
            write_record(self.run, {**self.record, **how})

    def start(self) -> None:
        """Write run.json and the resolved recipe."""
        self._running = True
        write_record(self.run, {**self.record, "status": RUNNING})  # first: it makes the folder a run
        write_atomic(self.run / "recipe.yaml", yaml.safe_dump(self.recipe.to_dict(), sort_keys=False))
        for left in (self.run / "checkpoints").glob(".*.tmp"):  # of a trainer that was killed while it saved
            left.unlink()

    def sync(self) -> None:
        """Wait until the tables are on the disk: before a checkpoint is, so that no row before it can be lost."""
        for table in (results.TABLE, CURVES):
            if (self.run / table).is_file():
                sync(self.run / table)

    def finish(self, status: str, step: int) -> None:
        """Write how the run ended into run.json."""
        self.sync()
        write_record(self.run, {**self.record, "status": status, "step": step})
        self._running = False

    def rows(self, rows: Iterable[Row]) -> list[Row]:
        """Append measured rows that are not in results.jsonl yet, and return them."""
        return results.append_new(self.run, rows)

    def curves(self, step: int, values: Mapping[str, float]) -> None:
        """Append one point of every training curve, but for those that the run had reached before it was resumed."""
        new = {name: value for name, value in values.items() if (step, name) not in self._ahead}
        self._ahead.difference_update([(step, name) for name in values])
        common = {key: self.record[key] for key in ("run", "system", "method", "train_seed")}
        rows = [make_row(metric=name, value=value, step=step, **common) for name, value in new.items()]
        results.append(self.run / CURVES, rows)


def environment() -> dict[str, str]:
    """Return the versions and the machine behind a run's numbers, as far as they can matter."""
    names = ("repa-eval", "torch", "timm", "accelerate", "numpy", "scipy", "scikit-learn")
    found = {name: _version(name) for name in names}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    threads = str(torch.get_num_threads())
    return {"python": platform.python_version(), **found, "device": device, "threads": threads, "commit": _commit()}


def _commit() -> str:
    """Return the commit of the checkout that the code lies in, "none" for an installed package."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return "none"
    command = ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return __version__ if name == "repa-eval" else "unknown"


def _look_ahead(curves: Path, step: int) -> tuple[float, set[tuple[int, str]]]:
    """Return the training seconds up to a step, and the (step, metric) of the points after it."""
    latest, seconds, ahead = 0, 0.0, set()
    for row in results.scan(curves) if curves.is_file() else ():
        at = row.step or 0
        if at > step:
            ahead.add((at, row.metric))
        elif row.metric == "train_seconds" and at >= latest:
            latest, seconds = at, row.value or 0.0
    return seconds, ahead
