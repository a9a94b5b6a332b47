"""Short content hashes for the protocol record."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import nn


def digest_module(module: nn.Module) -> str:
    """Return the first 12 hex digits of the sha256 over names, shapes and bytes of a module's tensors."""
    content = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        content.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        content.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()[:12]


def digest_file(path: str | Path) -> str:
    """Return the first 12 hex digits of the sha256 of a file."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()[:12]
