"""Open a checkpoint: `load(path)` recognises the layout and builds the model. (The one name that scripts rely on.)"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from repa_eval.checkpoints.recognise import Checkpoint


def load(path: str | Path, *, weights: str = "ema") -> Checkpoint:
    """Return the Checkpoint at `path` with the averaged ("ema") or the trained ("online") weights, in eval mode."""
    from repa_eval.checkpoints.recognise import recognise

    return recognise(path, weights=weights)
