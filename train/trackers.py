"""Experiment trackers: accelerate's (TensorBoard, wandb, trackio, mlflow, ...) as a callback of the trainer."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import ProjectConfiguration

from repa_eval.config import flatten
from repa_eval.errors import UserError, unknown
from repa_eval.results import Row
from repa_eval.train.callbacks import Callback
from repa_eval.train.recipe import Recipe

PROJECT = "repa-eval"
FOLDER = "trackers"  # in the run folder: what trackers keep in files


def named_trackers(log_with: str) -> list[str]:
    """Return the trackers in "a,b"; UserError for one that accelerate does not know or that is not installed."""
    names = [name.strip() for name in log_with.split(",") if name.strip()]
    for name in missing_trackers(names):
        raise UserError(f"log_with {name}: its package is not installed; install it, or leave log_with out")
    return names


def missing_trackers(names: Sequence[str]) -> list[str]:
    """Return the trackers whose package is not installed; UserError for one that accelerate does not know."""
    known, installed = list(map(str, LOGGER_TYPE_TO_CLASS)), {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in known:
            raise unknown("tracker", name, known)
    return [name for name in names if name not in installed]


def project_of(run: Path) -> ProjectConfiguration:
    """Return where trackers keep their files."""
    return ProjectConfiguration(project_dir=str(run), logging_dir=str(run / FOLDER))


class Trackers(Callback):
    """Passes curves and rows on to the trackers of an Accelerator, which it starts at the first of them."""

    def __init__(self, accelerator: Accelerator, recipe: Recipe) -> None:
        self.accelerator, self.recipe = accelerator, recipe

    @functools.cached_property
    def started(self) -> Sequence[Any]:
        """The running trackers, which were given the recipe."""
        leaves = flatten(self.recipe.to_dict())
        plain = {key: value if isinstance(value, (int, float, str)) else str(value) for key, value in leaves.items()}
        self.accelerator.init_trackers(PROJECT, config=plain)
        return self.accelerator.trackers

    def on_log(self, step: int, values: Mapping[str, float]) -> None:
        """Log a point of every curve."""
        for tracker in self.started:
            tracker.log(dict(values), step=step)

    def on_rows(self, rows: Sequence[Row]) -> None:
        """Log the values of rows under their metric, with layer and timestep where they have them."""
        for row in rows:
            if row.value is not None:
                for tracker in self.started:
                    tracker.log({_title(row): row.value}, step=row.step)

    def finish(self) -> None:
        """End the trackers, if they were started."""
        if "started" in vars(self):
            for tracker in self.started:
                tracker.finish()


def _title(row: Row) -> str:
    layer = [] if row.layer is None else [f"layer {row.layer}"]
    time = [] if row.timestep is None else [f"t {row.timestep:g}"]
    return "/".join([row.metric, *layer, *time])
