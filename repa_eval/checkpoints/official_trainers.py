"""Files of the official trainers: {model, ema, opt, args, steps} (REPA, HASTE, REG, ERW, SiT, DiT, U-DiT).

args is an argparse.Namespace of the command line; it tells the system, the teacher and the aligned block.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from repa_eval.checkpoints.repa_train import KEYS as OURS
from repa_eval.checkpoints.shared import networks
from repa_eval.checkpoints.shared.recognise import from_state
from repa_eval.errors import Failure
from repa_eval.interfaces.checkpoint_layout import Checkpoint, Request, checkpoint_layout

PATHS = {"linear": "linear", "cosine": "cosine", "gvp": "cosine"}  # GVP is the cosine path in reversed time


@checkpoint_layout("trainer")
def read(path: Path, content: Any, request: Request) -> Checkpoint | None:
    """Return the checkpoint; its arguments become the recorded options."""
    if not isinstance(content, dict) or not {"model", "ema"} & set(content) or set(content) >= set(OURS):
        return None
    options = arguments(content)
    state = request.choose(content, path)
    if not isinstance(state, Mapping) or not state:
        raise Failure(f"{path}: its {request.weights} weights are no state dict")
    recipe = recorded(options)
    aligned = networks.encoder_blocks(state)
    if aligned is not None:
        recipe["options"].setdefault("encoder_depth", aligned)
    steps = content.get("steps")
    return from_state(
        path,
        state,
        request,
        options=options,
        layout="trainer",
        weights=request.weights,
        step=int(steps) if steps is not None else None,
        recipe=recipe,
    )


def arguments(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the trainer's arguments: of `args` (Namespace or dict), or the leaves of GMem's nested `config`."""
    args, config = content.get("args"), content.get("config")
    if isinstance(args, argparse.Namespace):
        return dict(vars(args))
    return dict(_leaves(args if isinstance(args, dict) else config if isinstance(config, dict) else {}))


def _leaves(tree: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return (key, value) of every leaf, the inner ones first, so that outer ones win."""
    inner = [leaf for value in tree.values() if isinstance(value, Mapping) for leaf in _leaves(value)]
    return inner + [(str(key), value) for key, value in tree.items() if not isinstance(value, Mapping)]


def recorded(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return official arguments as the fields of a recipe that the rest of the project reads."""
    ours: dict[str, Any] = {
        key: options[key] for key in ("enc_type", "encoder_depth", "proj_coeff") if options.get(key) is not None
    }
    path_type = PATHS.get(str(options.get("path_type", "")).lower())
    if path_type is not None:
        ours["interpolant"] = {"path_type": path_type}
    recipe: dict[str, Any] = {"options": ours}
    if isinstance(options.get("seed"), int):
        recipe["seed"] = options["seed"]
    return recipe
