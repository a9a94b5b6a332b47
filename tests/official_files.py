"""Files as the official trainers write them, made from the published names and shapes: no memory, no download."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

GOLDEN = Path(__file__).resolve().parent / "golden"


def shapes(case: str, field: str = "state_dict") -> dict[str, list[int]]:
    """Return name -> shape of a golden `system/state_dict_*` case."""
    found: dict[str, list[int]] = json.loads((GOLDEN / f"{case}.json").read_text(encoding="utf-8"))[field]
    return found


def hollow(names: Mapping[str, Any], value: float = 0.0) -> dict[str, Tensor]:
    """Return tensors of these shapes that share one number, so that a 2.7 GB state dict is a small file."""
    one = torch.full((1,), value)
    return {name: one.expand(shape) if shape else one[0] for name, shape in names.items()}


def trainer_file(path: Path, state: Mapping[str, Tensor], *, steps: int | None = 400_000, **args: Any) -> Path:
    """Write {model, ema, opt, args, steps} as REPA's trainer and its forks do."""
    content: dict[str, Any] = {"model": dict(state), "ema": dict(state), "opt": {"state": {}, "param_groups": []}}
    if args:
        content["args"] = argparse.Namespace(**args)
    if steps is not None:
        content["steps"] = steps
    torch.save(content, path)
    return path


# arguments as the published command lines leave them in the file
REPA = {"model": "SiT-XL/2", "enc_type": "dinov2-vit-b", "proj_coeff": 0.5, "encoder_depth": 8, "path_type": "linear",
        "prediction": "v", "weighting": "uniform", "num_classes": 1000, "cfg_prob": 0.1, "seed": 0}  # fmt: skip
HASTE = {**REPA, "attn_coeff": 0.5, "early_stop_point": 250_000}
REG = {**REPA, "cls": 0.03}
ERW = {**REPA, "encoder_depth": 14, "l2r_depth": 4, "warmup_steps": 100_000, "use_rope": True}
SIT = {"model": "SiT-XL/2", "image_size": 256, "num_classes": 1000, "path_type": "Linear", "prediction": "velocity",
       "loss_weight": None, "sample_eps": None, "train_eps": None, "vae": "ema"}  # fmt: skip
DIT = {"model": "DiT-XL/2", "image_size": 256, "num_classes": 1000, "vae": "ema", "global_batch_size": 256}
