"""Files of weights: read without executing anything, unwrapped, and loaded strictly with one-line errors."""

from __future__ import annotations

import contextlib
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from repa_eval.errors import Failure, first_line
from repa_eval.weight_files.names import DEEPEST, State, flat, unwrapped
from repa_eval.weight_files.reading import read_file

NOTHING = r"(?!)"  # pattern of `load_strictly` that no name matches

# where files keep the state dict, in the order in which they are asked. I-JEPA's holds `encoder` and its average
# `target_encoder`, DINO's `teacher` and `student`; the REPA trainer (and timm) take the former
ENTRIES = (
    *("state_dict", "model_state_dict", "model", "module", "net", "network"),
    *("teacher", "encoder", "target_encoder", "student", "backbone"),
)
# parts of a prefix, the first of which decides between several networks: MoCo v3's base encoder, DINO's teacher
PREFERRED = ("base_encoder", "teacher", "encoder")
PREFIXES = ("base_encoder.", "backbone.")  # of a file in whose names the network's own do not occur
NAMELESS = "onnx::"  # begins what an ONNX export calls the matrices whose names it drops, whatever stands before others
# MoCo v3's files misname two norms and two linears; the REPA trainer repairs them so
MISNAMED = {
    "blocks.13.norm13.": "blocks.13.norm1.",
    "blocks.13.mlp.fc13.": "blocks.13.mlp.fc1.",
    "blocks.14.norm14.": "blocks.14.norm2.",
    "blocks.14.mlp.fc14.": "blocks.14.mlp.fc2.",
}


def read_state(path: Path, *, owner: str, names: Collection[str] = ()) -> State:
    """Return {parameter: tensor} of a .pt/.pth or .safetensors file, without the names of wrappers before them.

    Tensors stay on disk (mapped) until they are copied. owner: whose weights they are ("teacher dinov2-vit-b"), for
    errors. names: some names of the network, which show what stands before them in the file. Failure for a file that
    cannot be read without executing it, or holds no tensors, or several networks.
    """
    content = read_file(path, owner=owner, kind="file of weights")
    if not isinstance(content, Mapping):
        raise Failure(f"{owner}: {path} holds a {type(content).__name__}, not weights by name")
    entry = _entry(content)
    state = unwrapped({str(key): value for key, value in entry.items() if isinstance(value, Tensor)})
    if not state:
        raise Failure(f"{owner}: {path} holds no weights by name, but {_some(map(str, content))}")
    return {_repaired(key): value for key, value in _network(state, names, f"{owner}: {path}").items()}


def _entry(content: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Return the entry of a file that holds the state dict, which may lie in one another."""
    for _ in range(DEEPEST):
        key = next((key for key in ENTRIES if flat(content.get(key))), None)
        if key is None:
            break
        content = content[key]
    return content


def _network(state: State, names: Collection[str], where: str) -> State:
    """Return what lies under the prefix that stands before most of `names`; Failure where several do."""
    counts: Counter[str] = Counter()
    for key in state:
        parts = key.split(".")
        for depth in range(min(len(parts), DEEPEST + 1)):
            if ".".join(parts[depth:]) in names:
                counts["".join(f"{part}." for part in parts[:depth])] += 1
    found = [prefix for prefix, count in counts.items() if 2 * count > max(counts.values())]
    found = [prefix for prefix in found if not any(prefix != other and prefix.startswith(other) for other in found)]
    found = found or [prefix for prefix in PREFIXES if any(key.startswith(prefix) for key in state)][:1] or [""]
    for part in PREFERRED:
        found = [prefix for prefix in found if part in prefix.split(".")] or found
    if len(found) > 1:
        raise Failure(f"{where} holds several networks ({_some(found)}); save one of them in a file of its own")
    kept = (found[0], NAMELESS)
    return {key.removeprefix(found[0]): value for key, value in state.items() if key.startswith(kept)}


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

    drop: pattern of names that may be there and are not used, matched at the start (heads, decoders). Whole numbers
    are no weights: of a quantised network they are codes.
    """
    wanted = network.state_dict()
    missing = [key for key in wanted if key not in state]
    surplus = [key for key in state if key not in wanted and not re.match(drop, key)]
    wrong = [
        f"{key} of {_shape(state[key])} instead of {_shape(wanted[key])}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    whole = [
        f"{key} of {state[key].dtype}"
        for key in wanted
        if key in state and wanted[key].is_floating_point() and not state[key].is_floating_point()
    ]
    faults = {"wrong shape": wrong, "no floats": whole, "missing": missing, "not expected": surplus}
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
