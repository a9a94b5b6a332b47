"""RePaViT: the official trainer's file {model, model_ema, optimizer, lr_scheduler, epoch, scaler, args}, released
files that hold `model` alone, and what `repa-eval reparam` writes, {model, record}.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from repa_eval.checkpoints.official_trainers import arguments
from repa_eval.checkpoints.shared import networks, state_dicts
from repa_eval.checkpoints.shared.recognise import from_state
from repa_eval.checkpoints.shared.records import refuse_overrides
from repa_eval.config import from_dict
from repa_eval.errors import Failure
from repa_eval.interfaces.architecture import MODELS
from repa_eval.interfaces.checkpoint_layout import Checkpoint, Request, checkpoint_layout
from repa_eval.weight_files.names import flat, unwrapped

RECORD = frozenset({"class", "model", "architecture", "weights"})  # the record's entries without which it opens nothing


@checkpoint_layout("repavit")
def read(path: Path, content: Any, request: Request) -> Checkpoint | None:
    """Return the checkpoint; released files hold one set of weights, which is then opened whichever was asked for."""
    if not isinstance(content, dict) or not isinstance(content.get("model"), Mapping):
        return None
    if isinstance(content.get("record"), dict):
        return _merged(path, content["model"], content["record"], request)
    averaged = content.get("model_ema")
    trained = unwrapped(flat(content["model"]))
    if "ema" in content or not networks.is_network(trained, encoders=True):
        return None  # another trainer's
    weights = "ema" if request.weights == "ema" and averaged else "online"
    state = state_dicts.named_state(averaged, trained, path=path, weights=weights) if weights == "ema" else trained
    options = arguments(content)
    epoch = content.get("epoch")
    recipe = {"epoch": epoch} if isinstance(epoch, int) else {}
    facts: dict[str, Any] = {"layout": "repavit", "weights": weights, "step": None, "recipe": recipe}
    return from_state(path, state, request, options=options, **facts)


def _merged(path: Path, state: Any, record: Mapping[str, Any], request: Request) -> Checkpoint:
    if not set(record) >= RECORD:
        raise Failure(f"{path}: its record does not say what the model is ({', '.join(sorted(RECORD - set(record)))})")
    refuse_overrides(request, path)
    architecture = MODELS.get(record["class"])
    config = from_dict(architecture.defaults, record["architecture"], where="architecture")
    return Checkpoint(
        path=path,
        layout="repavit",
        systems=tuple(record.get("systems", ())),
        model_name=record["model"],
        models=(networks.assemble(architecture, config, state, where=str(path)),),
        weights=record["weights"],
        step=record.get("step"),
        recipe=record.get("recipe") or {},
        facts={"idle_ratio_from": "file"},
    )
