"""Files of weights: read without executing anything, unwrapped, and loaded strictly with one-line errors."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from repa_eval.errors import Failure, first_line
from repa_eval.weight_files.reading import read_file

State = dict[str, Tensor]
NOTHING = r"(?!)"  # pattern of `load_strictly` that no name matches

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


def read_state(path: Path, *, owner: str) -> State:
    """Return {parameter: tensor} of a .pt/.pth or .safetensors file, wrappers and prefixes removed.

    Tensors stay on disk (mapped) until they are copied. owner: whose weights they are ("teacher dinov2-vit-b"), for
    errors. Failure for a file that cannot be read without executing it, or holds no tensors.
    """
    content = read_file(path, owner=owner, kind="file of weights")
    if not isinstance(content, Mapping):
        raise Failure(f"{owner}: {path} holds a {type(content).__name__}, not weights by name")
    for key in WRAPPERS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    state = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise Failure(f"{owner}: {path} holds no weights by name, but {_some(map(str, content))}")
    for prefix in PREFIXES:
        if any(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return {_repaired(key): value for key, value in state.items()}


def convert(rule: Callable[..., Any], state: State, network: Any, *, owner: str, path: Path, **how: Any) -> State:
    """Return `state` under timm's names by timm's rule for `network`; Failure where the rule cannot be applied.

    how: arguments of the rule.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):  # DINOv3's rule prints
            return dict(rule(state, network, **how))
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        shown = network.pretrained_cfg.get("architecture", "the network")
        raise Failure(f"{owner}: {path} has other shapes than {shown} ({first_line(error)})") from error


def load_strictly(network: nn.Module, state: Mapping[str, Tensor], *, drop: str, owner: str, path: Path) -> None:
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
        raise Failure(f"{owner}: {path} does not hold its {len(wanted)} tensors ({told})")
    network.load_state_dict({key: state[key] for key in wanted})


def _repaired(key: str) -> str:
    wrong = next((start for start in MISNAMED if key.startswith(start)), "")
    return MISNAMED[wrong] + key.removeprefix(wrong) if wrong else key


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def _some(names: Iterable[str]) -> str:
    found = list(names)
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return (", ".join(found[:3]) or "nothing") + more
