"""Checkpoints of repa-train: {model, ema, method, opt, step, rng, recipe}."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from repa_eval.checkpoints.recognise import Checkpoint, layout
from repa_eval.config import from_dict
from repa_eval.errors import Failure, first_line
from repa_eval.models._registry import find_preset

KEYS = frozenset({"model", "ema", "method", "opt", "step", "rng", "recipe"})


@layout("repa-eval")
def read(path: Path, content: Any, weights: str) -> Checkpoint | None:
    """Return the checkpoint with its architecture as recorded in the recipe."""
    if not isinstance(content, dict) or not set(content) >= KEYS:
        return None
    recipe = content["recipe"]
    if not isinstance(recipe, dict) or not {"model", "architecture"} <= set(recipe):
        raise Failure(f"{path}: its recipe does not say what the model is")
    architecture, preset = find_preset(recipe["model"])
    model = architecture.build(from_dict(preset, recipe["architecture"], where="architecture"))
    try:
        model.load_state_dict(content["ema" if weights == "ema" else "model"])
    except RuntimeError as error:
        raise Failure(f"{path}: the weights do not fit the recorded architecture ({first_line(error)})") from error
    return Checkpoint(
        path=path,
        layout="repa-eval",
        systems=tuple(recipe.get("systems", ())),
        model_name=recipe["model"],
        model=model,
        weights=weights,
        step=int(content["step"]),
        recipe=recipe,
    )
