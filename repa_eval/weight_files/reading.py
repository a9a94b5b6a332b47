"""Read a file of weights without executing anything in it: tensors, plain values and two harmless classes."""

from __future__ import annotations

import argparse
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from repa_eval.errors import Failure, first_line

# What official trainers pickle beside tensors: their arguments, and SoftREPA its time offsets as a whole module.
ALLOWED: list[Any] = [argparse.Namespace, OrderedDict, torch.nn.modules.sparse.Embedding]


def read_file(file: Path) -> Any:
    """Return the content of a torch or safetensors file, memory-mapped: tensors are read when they are touched."""
    if file.suffix == ".safetensors":
        return read_safetensors(file)
    try:
        with torch.serialization.safe_globals(ALLOWED):
            return _load(file)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        asks = f" (it asks for {wanted[1]})" if wanted else ""
        raise Failure(f"{file} is not a checkpoint, or one that asks to run code{asks}; it was not opened") from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, AttributeError, TypeError) as error:
        raise Failure(f"{file} is not a readable checkpoint: {first_line(error)}") from error


def _load(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap can only be used" not in str(error):
            raise
        return torch.load(file, map_location="cpu", weights_only=True)  # written before torch 1.6: not a zip


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """Return the tensors of one safetensors file."""
    try:
        return load_file(file)
    except (OSError, ValueError, SafetensorError) as error:
        raise Failure(f"{file} is not a readable safetensors file: {first_line(error)}") from error
