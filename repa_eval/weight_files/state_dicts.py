"""Files of weights: read without executing anything, unwrapped, and loaded strictly with one-line errors."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from repa_eval.errors import Failure, first_line

State = dict[str, Tensor]

# where published files keep the state dict. I-JEPA's holds `encoder` and its average `target_encoder`; the REPA
# trainer (and timm) take the former
WRAPPERS = ("state_dict", "model", "teacher", "encoder", "target_encoder")
# what stands before the encoder's names: MoCo v3, data-parallel I-JEPA, DINO's full file. Others of the file are left
PREFIXES = ("module.base_encoder.", "module.", "backbone.")
# MoCo v3's files misname two norms and two linears; the REPA trainer repairs them so
MISNAMED = {
    "blocks.13.norm13.": "blocks.13.norm1.",
    "blocks.13.mlp.fc13.": "blocks.13.mlp.fc1.",
    "blocks.14.norm14.": "blocks.14.norm2.",
    "blocks.14.mlp.fc14.": "blocks.14.mlp.fc2.",
}


def read_state(path: Path, *, name: str) -> State:
    """Return {parameter: tensor} of a .pt/.pth or .safetensors file, wrappers and prefixes removed.

    Tensors stay on disk (mmap) until they are copied. Failure, naming teacher `name`, for what cannot be read
    without executing it, or holds no tensors.
    """
    content = _open(path, name)
    for key in WRAPPERS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    state = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise Failure(f"teacher {name}: {path} holds no weights by name, but {_some(map(str, content))}")
    for prefix in PREFIXES:
        if any(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return {_repaired(key): value for key, value in state.items()}


def convert(rule: Callable[..., Any], state: State, network: Any, *, name: str, path: Path) -> State:
    """Return `state` under timm's names by timm's rule for `network`; Failure where the rule cannot be applied."""
    try:
        return dict(rule(state, network))
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        shown = network.pretrained_cfg.get("architecture", "the network")
        raise Failure(f"teacher {name}: {path} has other shapes than {shown} ({first_line(error)})") from error


def load_strictly(network: nn.Module, state: Mapping[str, Tensor], *, drop: str, name: str, path: Path) -> None:
    """Copy `state` into `network`; Failure that names the first names and shapes that do not fit.

    drop: pattern of names that may be there and are not used, matched at the start (heads, decoders).
    """
    wanted = network.state_dict()
    missing = [key for key in wanted if key not in state]
    surplus = [key for key in state if key not in wanted and not re.match(drop, key)]
    wrong = [
        f"{key} of {_shape(state[key])} instead of {_shape(wanted[key])}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    faults = {"wrong shape": wrong, "missing": missing, "not expected": surplus}
    if any(faults.values()):
        told = "; ".join(f"{fault}: {_some(names)}" for fault, names in faults.items() if names)
        raise Failure(f"teacher {name}: {path} does not hold its {len(wanted)} tensors ({told})")
    network.load_state_dict({key: state[key] for key in wanted})


def _open(path: Path, name: str) -> Mapping[str, Any]:
    zipped = zipfile.is_zipfile(path)
    if zipped and _is_script(path):
        raise Failure(
            f"teacher {name}: {path} is a TorchScript program, and nothing in a file is executed; where you trust it, "
            f"save its tensors: torch.save(torch.jit.load(FILE, 'cpu').state_dict(), 'weights.pt')"
        )
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:  # files older than the zip format cannot be mapped
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise Failure(
            f"teacher {name}: {path} is no file of weights, or asks to run code; it was not opened (a file of tensors "
            f"and plain values only is read: save its state_dict)"
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError, SafetensorError) as error:
        raise Failure(f"teacher {name}: {path} is not readable ({first_line(error)})") from error
    if not isinstance(content, Mapping):
        raise Failure(f"teacher {name}: {path} holds a {type(content).__name__}, not weights by name")
    return content


def _is_script(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(entry.partition("/")[2] == "constants.pkl" for entry in archive.namelist())


def _repaired(key: str) -> str:
    wrong = next((start for start in MISNAMED if key.startswith(start)), "")
    return MISNAMED[wrong] + key.removeprefix(wrong) if wrong else key


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def _some(names: Iterable[str]) -> str:
    found = list(names)
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return (", ".join(found[:3]) or "nothing") + more
