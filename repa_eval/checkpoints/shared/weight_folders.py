"""Weights in a folder: one file of a known name, or several files (shards) and an index of what lies in which."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from repa_eval.errors import Failure, UserError
from repa_eval.runtime.shard_index import INDEX, read_index
from repa_eval.weight_files.reading import read_file

NAMES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.safetensors")  # as libraries write them
DISTRIBUTED = ".metadata"  # of a folder that torch.distributed.checkpoint wrote
LONGEST_INDEX = 64 << 20  # bytes


def read_weights(path: Path) -> Any:
    """Return the content of a file of weights, of the files of an index, or of a folder; None for a folder without."""
    if path.is_dir():
        return read_folder(path)
    return read_sharded(path) if _is_index(path) else read_file(path)


def _is_index(path: Path) -> bool:
    """Return whether a file is an index of shards: JSON that is not too long."""
    if not path.is_file() or path.stat().st_size > LONGEST_INDEX:
        return False
    with open(path, "rb") as handle:
        return handle.read(1) == b"{" and b'"weight_map"' in handle.read()


def read_folder(folder: Path) -> Any:
    """Return the content of the weights in a folder, None where it holds none under a name that is known.

    UserError for a folder of torch.distributed.checkpoint, whose index is a pickle of classes: it says how to convert
    it. Failure for an index that names what is not there.
    """
    if (folder / DISTRIBUTED).is_file():
        raise UserError(
            f"{folder} is a folder of torch.distributed.checkpoint, whose index would run code; if you trust it, "
            f"convert it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} weights.pt"
        )
    indices = [folder / f"{name}{INDEX}" for name in NAMES if (folder / f"{name}{INDEX}").is_file()]
    if indices:
        return read_sharded(indices[0])
    file = next((folder / name for name in NAMES if (folder / name).is_file()), None)
    return None if file is None else read_file(file)


def read_sharded(index: Path) -> dict[str, Any]:
    """Return {name: tensor} of all files that an index NAME.index.json names; they lie beside it."""
    places = read_index(index)
    content: dict[str, Any] = {}
    for name in sorted(set(places.values())):
        shard = read_file(index.parent / name)
        if not isinstance(shard, Mapping):
            raise Failure(f"{index.parent / name} holds a {type(shard).__name__}, not weights by name")
        content |= {key: shard[key] for key, place in places.items() if place == name and key in shard}
    missing = [key for key in places if key not in content]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise Failure(f"{index}: {missing[0]}{more} is not in the file that it names")
    return content
