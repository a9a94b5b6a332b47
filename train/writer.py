"""What a run writes of itself: recipe.yaml, run.json, the table of results and the training curves."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from repa_eval import __version__, results
from repa_eval.results import CURVES, Row, make_row
from repa_eval.runtime.files import write_atomic
from repa_eval.train import state
from repa_eval.train.recipe import Recipe

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
    """Appends rows once: a resumed run repeats steps after its last checkpoint, and their rows are there already."""

    def __init__(self, run: Path, recipe: Recipe, record: Mapping[str, Any]) -> None:
        self.run = run
        self.recipe = recipe
        self.record = dict(record)
        self._tables = {name: _read(run, name) for name in (results.TABLE, CURVES)}

    def start(self) -> None:
        """Write run.json and the resolved recipe."""
        state.write_run(self.run, {**self.record, "status": "running"})  # first: it makes the folder a run
        write_atomic(self.run / "recipe.yaml", yaml.safe_dump(self.recipe.to_dict(), sort_keys=False))
        for left in (self.run / "checkpoints").glob(".*.tmp"):  # of a trainer that was killed while it saved
            left.unlink()

    def finish(self, status: str, step: int) -> None:
        """Write how the run ended into run.json."""
        state.write_run(self.run, {**self.record, "status": status, "step": step})

    def rows(self, rows: Iterable[Row]) -> list[Row]:
        """Append measured rows that are not in results.jsonl yet, and return them."""
        return self._append(results.TABLE, rows)

    def curves(self, step: int, values: Mapping[str, float]) -> None:
        """Append one point of every training curve."""
        common = {key: self.record[key] for key in ("run", "system", "method", "train_seed")}
        self._append(
            CURVES, [make_row(metric=name, value=value, step=step, **common) for name, value in values.items()]
        )

    def seconds(self, step: int) -> float:
        """Return the training seconds up to `step`, as far as the curves tell."""
        points = [row for row in self._tables[CURVES].values() if row.metric == "train_seconds"]
        known = [(row.step or 0, row.value or 0.0) for row in points if (row.step or 0) <= step]
        return max(known)[1] if known else 0.0

    def _append(self, table: str, rows: Iterable[Row]) -> list[Row]:
        known = self._tables[table]
        new = [row for row in rows if row.key() not in known]
        results.append(self.run / table, new)
        known.update({row.key(): row for row in new})
        return new


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


def _read(run: Path, table: str) -> dict[tuple[Any, ...], Row]:
    path = run / table
    return {row.key(): row for row in results.read(path)} if path.is_file() else {}
