"""A bare state dict, as the released files are: REPA's, SiT's and DiT's EMA weights, safetensors without a config.

Also the older REPA files whose blocks after the aligned one are called `decoder_blocks`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from repa_eval.checkpoints.shared import networks
from repa_eval.checkpoints.shared.recognise import from_state
from repa_eval.errors import UserError
from repa_eval.interfaces.checkpoint_layout import Checkpoint, Request, checkpoint_layout


@checkpoint_layout("state-dict")
def read(path: Path, content: Any, request: Request) -> Checkpoint | None:
    """Return the checkpoint; released files hold the averaged weights and nothing else."""
    if isinstance(content, dict) and set(content) == {"state_dict"}:
        content = content["state_dict"]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        return None
    aligned = networks.encoder_blocks(content)
    options = {} if aligned is None else {"encoder_depth": aligned}
    checkpoint = from_state(
        path, content, request, layout="state-dict", weights="ema", step=None, recipe={"options": options}
    )
    if checkpoint is not None and request.weights != "ema":
        raise UserError(f"{path} is a bare state dict: it holds one set of weights; leave --weights out")
    return checkpoint
