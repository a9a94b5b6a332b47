"""Open a checkpoint: `load(path)` recognises the layout and builds the model. (The one name that scripts rely on.)"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repa_eval.interfaces.checkpoint_layout import Checkpoint


def load(
    path: str | Path, *, weights: str = "ema", overrides: Mapping[str, Any] | None = None, allow_nan: bool = False
) -> Checkpoint:
    """Return the Checkpoint at `path` with the averaged ("ema") or the trained ("online") weights, in eval mode.

    path: a file, a folder (safetensors with config.json, diffusers), or "hf:owner/name[:file]".
    overrides: what neither shapes nor the file tell, such as {"num_heads": 6} or {"system": "DiT"}.
    allow_nan: open it even if weights are not finite.
    """
    from repa_eval.checkpoints.shared.recognise import recognise
    from repa_eval.interfaces.checkpoint_layout import Request
    from repa_eval.weight_files import hub

    return recognise(hub.local(path), Request(weights=weights, overrides=dict(overrides or {}), allow_nan=allow_nan))
