"""Files of the official trainers: {model, ema, opt, args, steps} (REPA, HASTE, REG, ERW, SiT, DiT, U-DiT).

args is an argparse.Namespace of the command line; it tells the system, the teacher and the aligned block.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from repa_eval.checkpoints.repa_train import KEYS as OURS
from repa_eval.checkpoints.shared import networks, state_dicts
from repa_eval.checkpoints.shared.recognise import from_state, locate
from repa_eval.interfaces.checkpoint_layout import Checkpoint, Request, checkpoint_layout
from repa_eval.weight_files.names import flat

_log = logging.getLogger(__name__)
STEPS = ("steps", "step", "global_step", "iteration")
KINDS: dict[str, Any] = {"enc_type": str, "encoder_depth": int, "proj_coeff": int | float}
PATHS = {"linear": "linear", "cosine": "cosine", "gvp": "cosine"}  # GVP is the cosine path in reversed time


@checkpoint_layout("trainer")
def read(path: Path, content: Any, request: Request) -> Checkpoint | None:
    """Return the checkpoint; its arguments become the recorded options."""
    if not holds_sets(content) or set(content) >= set(OURS):
        return None
    options = arguments(content)
    state = _chosen(content, request, path)
    recipe = recorded(options)
    found = locate(state, request, path)
    aligned = networks.encoder_blocks(found.state) if found is not None else None
    if aligned is not None:
        recipe["options"].setdefault("encoder_depth", aligned)
    return from_state(
        path,
        state,
        request,
        options=options,
        layout="trainer",
        weights=request.weights,
        step=recorded_step(content, path),
        recipe=recipe,
    )


def holds_sets(content: Any) -> bool:
    """Return whether a file holds its weights as a trainer's does: as entries `model` and `ema`, or one of them."""
    return isinstance(content, dict) and any(
        isinstance(content.get(key), Mapping | list | tuple) for key in ("model", "ema")
    )


def _chosen(content: Mapping[str, Any], request: Request, path: Path) -> state_dicts.State:
    """Return the wanted weights, as they are in the file; averages may lie under another name (`model_ema`)."""
    ema = content.get("ema")
    if request.weights == "ema" and (ema is None or (isinstance(ema, Mapping | list | tuple) and not ema)):
        averages = {key: value for key, value in content.items() if state_dicts.AVERAGED.search(str(key))}
        if found := flat(averages):
            return found
    value = request.choose(content, path)
    return state_dicts.named_state(value, content.get("model"), path=path, weights=request.weights)


def recorded_step(content: Mapping[str, Any], path: Path) -> int | None:
    """Return the number of steps that a file records, None where it has none, or one that is no number (and say so)."""
    key = next((key for key in STEPS if content.get(key) is not None), None)
    if key is None:
        return None
    step = state_dicts.step_of(content[key])
    if step is None:
        shown = repr(content[key])[:40]
        _log.warning("%s: its `%s` is %s, no number of steps: rows will have no step", path, key, shown)
    return step


def arguments(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the trainer's arguments: of `args` (Namespace or dict), or the leaves of a nested `config`.

    Such are GMem's `config` and Lightning's `hyper_parameters`.
    """
    args, config = content.get("args"), content.get("config", content.get("hyper_parameters"))
    if isinstance(args, argparse.Namespace):
        return dict(vars(args))
    return dict(_leaves(args if isinstance(args, dict) else config if isinstance(config, dict) else {}))


def _leaves(tree: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return (key, value) of every leaf, the inner ones first, so that outer ones win."""
    inner = [leaf for value in tree.values() if isinstance(value, Mapping) for leaf in _leaves(value)]
    return inner + [(str(key), value) for key, value in tree.items() if not isinstance(value, Mapping)]


def recorded(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return official arguments as the fields of a recipe that the rest of the project reads."""
    ours: dict[str, Any] = {key: options[key] for key, kind in KINDS.items() if isinstance(options.get(key), kind)}
    path_type = PATHS.get(str(options.get("path_type", "")).lower())
    if path_type is not None:
        ours["interpolant"] = {"path_type": path_type}
    recipe: dict[str, Any] = {"options": ours}
    if isinstance(options.get("seed"), int):
        recipe["seed"] = options["seed"]
    return recipe
