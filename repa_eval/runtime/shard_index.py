"""Names of files inside an index of shards, NAME.index.json: they lie beside it, and nowhere else."""

from __future__ import annotations

import re
from pathlib import Path

from repa_eval.errors import Failure, UserError, short_repr
from repa_eval.runtime.files import lies_beside, read_json

INDEX = ".index.json"
MOST_SHARDS = 10_000
# what the fields of a config may be at most: numbers of blocks, sides of images, anything else
COUNTS, SIDES = re.compile("layers|blocks|depth|num_.*heads"), re.compile("sample_size|max_size|patch_size")
LARGEST = {"count": 512, "side": 2048, "width": 50_000}


def read_index(index: Path) -> dict[str, str]:
    """Return {tensor: file} of an index; Failure unless every file is a plain name of what lies beside the index."""
    record = read_json(index)
    places = record.get("weight_map") if isinstance(record, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(place, str) for place in places.values()):
        raise Failure(f"{index} does not say which file each tensor lies in (weight_map)")
    names = sorted(set(places.values()))
    if len(names) > MOST_SHARDS:
        raise Failure(f"{index} names {len(names)} files; at most {MOST_SHARDS} are read")
    for name in names:
        if not lies_beside(name):
            raise Failure(f"{index} names {name!r}, which is no file beside it")
        if not (index.parent / name).is_file():
            raise Failure(f"{index} names {name}, which is not there; download it again")
    return places


def check_for_diffusers(folder: Path) -> None:
    """Refuse a folder whose files would make diffusers open others, import a library, or build without end.

    diffusers joins the names of an index to the folder as they are, loads the library that a quantised network names,
    and builds as many blocks as the config says before it looks at the weights.
    """
    for index in sorted(folder.glob(f"*{INDEX}")):
        read_index(index)
    config = folder / "config.json"
    content = read_json(config) if config.is_file() else None
    if not isinstance(content, dict):
        return
    if content.get("quantization_config") is not None:
        raise UserError(f"{config} asks for quantised weights (quantization_config); save the network in float32")
    for key, value in content.items():
        most = LARGEST["count" if COUNTS.search(key) else "side" if SIDES.search(key) else "width"]
        numbers = value if isinstance(value, list) else [value]
        if len(numbers) > LARGEST["count"] or any(isinstance(n, int | float) and not abs(n) <= most for n in numbers):
            raise Failure(f"{config}: {key} is {short_repr(value)}; no network has more than {most:,}")
