"""Weights without a trainer's record of ours: released EMA weights, safetensors, and files such as Lightning's.

Also the older REPA files whose blocks after the aligned one are called `decoder_blocks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from repa_eval.checkpoints.official_trainers import arguments, holds_sets, recorded, recorded_step
from repa_eval.checkpoints.shared import networks
from repa_eval.checkpoints.shared.recognise import from_state, locate
from repa_eval.errors import UserError
from repa_eval.interfaces.checkpoint_layout import Checkpoint, Request, checkpoint_layout
from repa_eval.weight_files.names import flat


@checkpoint_layout("state-dict")
def read(path: Path, content: Any, request: Request) -> Checkpoint | None:
    """Return the checkpoint of a network somewhere in the content, with whatever is known of it.

    A file of nothing but one set of weights holds the averaged ones, as released files do. Beside other entries the
    weights are the trained ones, unless their names say that they are averages.
    """
    if not isinstance(content, Mapping) or holds_sets(content):
        return None  # nothing, or a trainer's
    found = locate(flat(content), request, path)
    if found is None:
        return None
    bare = all(isinstance(value, Tensor) for value in content.values()) or set(content) == {"state_dict"}
    released = bare and not found.others
    if released and request.weights != "ema":
        raise UserError(f"{path} is a bare state dict: it holds one set of weights; leave --weights out")
    options = {} if bare else arguments(content)
    recipe = recorded(options)
    aligned = networks.encoder_blocks(found.state)
    if aligned is not None:
        recipe["options"].setdefault("encoder_depth", aligned)
    checkpoint = from_state(
        path,
        found.state,
        request,
        options=options,
        layout="state-dict",
        weights="ema" if released or found.averaged else "online",
        step=None if bare else recorded_step(content, path),
        recipe=recipe,
    )
    if checkpoint is not None and found.others:
        checkpoint.facts["other_networks"] = ", ".join(found.others)
    return checkpoint
