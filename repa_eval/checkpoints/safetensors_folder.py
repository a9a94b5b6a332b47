"""What `repa-eval convert` writes: model.safetensors beside config.json, or NAME.safetensors beside NAME.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from repa_eval.checkpoints.shared import networks
from repa_eval.checkpoints.shared.records import refuse_overrides
from repa_eval.config import to_dict
from repa_eval.diffusion.conventions import VELOCITY, converted, native_of
from repa_eval.errors import Failure, UserError
from repa_eval.interfaces.architecture import MODELS
from repa_eval.interfaces.checkpoint_layout import Checkpoint, Request, checkpoint_layout
from repa_eval.plugin_files.records import naming_plugins
from repa_eval.runtime.files import read_json
from repa_eval.weight_files.names import flat

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the record that opens the weights again without looking at them; UserError if no network of ours."""
    network = checkpoint.network
    registered = next((name for name, known in MODELS.items() if known.build is type(network)), None)
    if registered is None:
        raise UserError(f"{checkpoint.path} holds a {checkpoint.model_name}, which is not converted: it is one already")
    return {
        "class": registered,
        "model": checkpoint.model_name,
        "architecture": to_dict(network.config),
        "systems": list(checkpoint.systems),
        "conventions": [native_of(model) for model in checkpoint.models],
        "weights": checkpoint.weights,
        "step": checkpoint.step,
        "recipe": checkpoint.recipe,
    }


@checkpoint_layout("safetensors")
def read(path: Path, content: Any, request: Request) -> Checkpoint | None:
    """Return the checkpoint as its config describes it."""
    weights = path / WEIGHTS if path.is_dir() else path
    config_file = weights.with_name(CONFIG) if weights.name == WEIGHTS else weights.with_suffix(".json")
    if not config_file.is_file():
        return None
    record = read_json(config_file)
    if not isinstance(record, dict) or not {"model", "architecture"} <= set(record):
        return None
    state = flat(content)
    if not state:
        raise Failure(f"{path} has a {CONFIG} but no {WEIGHTS}, nor an index of several")
    if request.weights != record.get("weights", "ema"):
        raise UserError(f"{path} holds the {record.get('weights', 'ema')} weights only")
    refuse_overrides(request, path)
    with naming_plugins(record.get("recipe")):
        if "class" in record:
            architecture = MODELS.get(record["class"])
            config = networks.recorded_config(architecture, architecture.defaults, record["architecture"])
        else:
            architecture, config = networks.preset_of(record["model"], record["architecture"])
    natives = record.get("conventions") or [VELOCITY]
    network = networks.assemble(architecture, config, state, where=str(path))
    return Checkpoint(
        path=path,
        layout="safetensors",
        systems=tuple(record.get("systems", ())),
        model_name=record["model"],
        models=tuple(converted(network, native) for native in natives),
        weights=request.weights,
        step=record.get("step"),
        recipe=record.get("recipe") or {},
    )
