"""The device that a name such as auto or cuda:1 means on this machine."""

from __future__ import annotations

import re

from repa_eval.errors import UserError


def choose_device(name: str) -> str:
    """Return the torch device for auto, cpu, cuda or cuda:N; UserError if this machine does not have it."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cpu" and not re.fullmatch(r"cuda(:\d+)?", name):
        raise UserError(f"device {name!r}: choose auto, cpu, cuda or cuda:N")
    if name != "cpu" and not torch.cuda.is_available():
        raise UserError(f"device {name!r}: this machine has no CUDA device; use --device cpu")
    return name
