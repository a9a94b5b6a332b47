"""A transformer or UNet that diffusers saved: a folder with config.json (`_class_name`), or a pipeline around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from repa_eval.checkpoints.shared.diffusers_model import DiffusersModel
from repa_eval.checkpoints.shared.diffusers_networks import CALLERS, Caller
from repa_eval.checkpoints.shared.native_times import native_time
from repa_eval.errors import Failure, UserError, first_line
from repa_eval.interfaces.checkpoint_layout import Checkpoint, Request, checkpoint_layout
from repa_eval.runtime.files import read_json
from repa_eval.runtime.shard_index import check_for_diffusers

PARTS = ("transformer", "unet")  # where a pipeline keeps its denoiser
SYSTEMS = {"SD3Transformer2DModel": ("SoftREPA",), "UNet2DConditionModel": ("SoftREPA",)}


@checkpoint_layout("diffusers")
def read(path: Path, content: Any, request: Request) -> Checkpoint | None:
    """Return the checkpoint with the network as diffusers builds it, its weights untouched."""
    parts = [path / part for part in PARTS] if (path / "model_index.json").is_file() else []
    folder = next((part for part in parts if part.is_dir()), path)
    config_file = folder / "config.json"
    if not config_file.is_file():
        return None
    config = read_json(config_file)
    name = config.get("_class_name") if isinstance(config, dict) else None
    if name is None:
        return None
    network = _open(folder, str(name))
    facts = _facts(config)
    caller = CALLERS.get(str(name))
    model = network if caller is None else _measured(folder, network, caller(config), request)
    if isinstance(model, DiffusersModel):
        facts |= {"depth": model.depth, "input_size": model.config.input_size, "convention": model.native}
    return Checkpoint(
        path=path,
        layout="diffusers",
        systems=SYSTEMS.get(str(name), ()),
        model_name=str(name),
        models=(model,),
        weights=request.weights,
        step=None,
        facts=facts,
    )


def _measured(folder: Path, network: Any, caller: Caller, request: Request) -> DiffusersModel:
    """Return the network behind our convention, by the scheduler of the pipeline that the folder belongs to."""
    other = sorted(set(request.overrides) - {"input_size"})
    if other:
        raise UserError(f"--set {other[0]}: a network of diffusers says itself what it is; only input_size may be set")
    side = request.overrides.get("input_size", caller.side)
    if isinstance(side, bool) or not isinstance(side, int) or side < 1:
        raise UserError(
            f"{folder} does not say which side its images have (sample_size {side}): add --set input_size=N"
        )
    places = [place for place in (folder, folder.parent) if (place / "model_index.json").is_file()]
    scheduler = places[0] / "scheduler" if places else None
    return DiffusersModel(network, caller, native_time(scheduler, caller.scheduler), side=side)


def _open(folder: Path, name: str) -> Any:
    try:
        import diffusers
    except ModuleNotFoundError as error:
        raise UserError(f"{folder} holds a {name}: install diffusers, pip install 'repa-eval[latents]'") from error
    known: Any = getattr(diffusers, name, None)
    opens = isinstance(known, type) and issubclass(known, diffusers.ModelMixin)
    if not opens:
        raise UserError(f"{folder} holds a {name}, which the installed diffusers {diffusers.__version__} does not know")
    check_for_diffusers(folder)
    try:
        network, info = known.from_pretrained(folder, use_safetensors=True, output_loading_info=True)  # never a pickle
    except Exception as error:  # its constructors stumble over any value of a config
        raise Failure(f"{folder} cannot be opened by diffusers: {first_line(error)}") from error
    if lacking := sorted(info.get("missing_keys") or ()):
        raise Failure(f"{folder}: the weights lack {len(lacking)} tensors of its {name}, such as {lacking[0]}")
    return network


def _facts(config: dict[str, Any]) -> dict[str, Any]:
    """Return the sizes under the names that `inspect` uses."""
    heads, head_width = config.get("num_attention_heads"), config.get("attention_head_dim")
    return {
        "depth": config.get("num_layers"),
        "hidden_size": heads * head_width if isinstance(heads, int) and isinstance(head_width, int) else None,
        "num_heads": heads,
        "patch_size": config.get("patch_size"),
        "in_channels": config.get("in_channels"),
        "input_size": config.get("sample_size"),
        "num_classes": config.get("num_embeds_ada_norm"),
    }
