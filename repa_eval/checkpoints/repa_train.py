"""Checkpoints of repa-train: {model, ema, method, opt, step, rng, recipe}."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from repa_eval.checkpoints.shared import networks, state_dicts
from repa_eval.checkpoints.shared.records import refuse_overrides
from repa_eval.diffusion.conventions import as_project_convention
from repa_eval.diffusion.model import DiffusionModel
from repa_eval.errors import Failure
from repa_eval.interfaces.checkpoint_layout import Checkpoint, Request, checkpoint_layout
from repa_eval.plugin_files.records import naming_plugins

KEYS = ("model", "ema", "method", "opt", "step", "rng", "recipe")  # in the order of the file


@checkpoint_layout("repa-eval")
def read(path: Path, content: Any, request: Request) -> Checkpoint | None:
    """Return the checkpoint with its architecture as recorded in the recipe."""
    if not isinstance(content, dict) or not set(content) >= set(KEYS):
        return None
    recipe = content["recipe"]
    if not isinstance(recipe, dict) or not {"model", "architecture"} <= set(recipe):
        raise Failure(f"{path}: its recipe does not say what the model is")
    if not isinstance(recipe.get("options", {}), dict) or not isinstance(recipe.get("systems", ()), list | tuple):
        raise Failure(f"{path}: its recipe is damaged (options or systems)")
    refuse_overrides(request, path)
    with naming_plugins(recipe):
        architecture, config = networks.preset_of(recipe["model"], recipe["architecture"])
    chosen = request.choose(content, path)
    state = state_dicts.named_state(chosen, content["model"], path=path, weights=request.weights)
    network = networks.assemble(architecture, config, state, where=str(path))
    stub = isinstance(network, DiffusionModel) and network.stub
    return Checkpoint(
        path=path,
        layout="repa-eval",
        systems=tuple(recipe.get("systems", ())),
        model_name=f"{recipe['model']}, first {config.depth} blocks" if stub else recipe["model"],
        models=(as_project_convention(network),),
        weights=request.weights,
        step=content["step"],
        recipe=recipe,
    )
