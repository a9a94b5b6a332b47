"""Training from Python: a recipe by its name, a file, a mapping or an object, into a run folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from repa_eval.runtime.device import choose_device
from repa_eval.train import loop
from repa_eval.train.callbacks import Callback, LogFunction
from repa_eval.train.evaluated import monitors_of
from repa_eval.train.recipe import Recipe, read_recipe, resolve


def train(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    out: str | Path,
    *,
    callbacks: Iterable[Callback | LogFunction] = (),
    overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
    device: str = "auto",
    progress: bool = False,
) -> Path:
    """Train a recipe into the run folder `out`, as `repa-train` does, and return the last checkpoint.

    recipe: a name of `repa-eval list recipes`, a YAML file, a tree of its fields, or a resolved Recipe. overrides:
    fields to change, under their bare or dotted keys: {"max_steps": 500, "optim.learning_rate": 1e-4}. callbacks:
    objects with any of on_log(step, values), on_rows(rows), on_checkpoint(path), or functions (step, values),
    called by the first of several processes. resume: continue from the last checkpoint, or start where there is none.
    """
    if not isinstance(recipe, Recipe):
        tree = recipe if isinstance(recipe, Mapping) else read_recipe(str(recipe))
        recipe = resolve(tree, overrides)
    elif overrides:
        recipe = resolve(recipe.to_dict(), overrides)
    run, where = Path(out), choose_device(device)
    monitors = monitors_of(recipe, run, where)
    return loop.train(
        recipe, run, monitors=monitors, callbacks=callbacks, resume=resume, device=where, progress=progress
    )
