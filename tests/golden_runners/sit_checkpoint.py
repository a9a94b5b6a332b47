"""willisma/SiT's checkpoint in the convention of REPA, through the loader that opens published files."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from golden_runners import Arrays, Case, runner
from golden_runners.fill import fill_values
from repa_eval import checkpoints
from repa_eval.config import from_dict
from repa_eval.models.sit import SiT, SiTConfig


@runner("sit", "checkpoint")
def checkpoint(case: Case, arrays: Arrays) -> Arrays:
    given = case["config"]["model"]
    state = SiT(from_dict(SiTConfig(), given)).state_dict()
    filled = state | fill_values(state, keep=case["fill"]["kept_as_initialised"])
    with tempfile.TemporaryDirectory() as folder:
        torch.save(filled, Path(folder) / "published.pt")
        overrides = {"num_heads": given["num_heads"], "system": "SiT"}
        model = checkpoints.load(Path(folder) / "published.pt", overrides=overrides).model
        x, t, y = (torch.from_numpy(arrays[name]) for name in ("x", "t_repa", "y"))
        with torch.no_grad():
            return {"v_repa": model(x, t, y)[0].numpy()}
