"""A set of generated images on disk: PNG files (a folder per thousand) or one npz, and the protocol beside them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from repa_eval.errors import Failure, UserError
from repa_eval.results import write_atomic

RECORD = "samples.json"
PER_FOLDER = 1000


class SampleFolder:
    """PNG files DIR/00000/000000.png ...; what exists is kept, so an interrupted run continues."""

    def __init__(self, path: Path, record: Mapping[str, Any]) -> None:
        self.path = path
        before = read_record(path)
        if before is not None and before != dict(record):
            differing = sorted(key for key in {*before, *record} if before.get(key) != record.get(key))
            raise UserError(
                f"{path} holds samples made otherwise ({', '.join(differing)} differ); choose another --out"
            )
        if before is None and path.is_dir() and any(path.iterdir()):
            raise UserError(f"{path} is not empty and holds no samples of ours; choose another --out")
        write_atomic(path / RECORD, json.dumps(dict(record), indent=1) + "\n")

    def file(self, index: int) -> Path:
        """Return the file of a sample."""
        return self.path / f"{index // PER_FOLDER:05d}" / f"{index:06d}.png"

    def missing(self, count: int) -> list[int]:
        """Return the indices below `count` that are not there yet."""
        return [index for index in range(count) if not self.file(index).is_file()]

    def add(self, indices: Iterable[int], images: Tensor) -> None:
        """Write images uint8 (B, C, H, W)."""
        for index, image in zip(indices, images.numpy(), strict=True):
            write_atomic(self.file(index), png(image))


def png(image: np.ndarray[Any, Any]) -> bytes:
    """Return the PNG of a uint8 (C, H, W) image, grey or RGB."""
    buffer = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


def save_npz(path: Path, images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], record: Mapping[str, Any]) -> None:
    """Write arr_0 uint8 (N, H, W, C) and arr_1 labels, stored, with the record in PATH.json beside it."""
    buffer = io.BytesIO()
    np.savez(buffer, arr_0=images.transpose(0, 2, 3, 1), arr_1=labels)
    write_atomic(path, buffer.getvalue())
    write_atomic(record_path(path), json.dumps(dict(record), indent=1) + "\n")


def record_path(path: Path) -> Path:
    """Return where the record of samples at `path` lies."""
    return path.with_name(path.name + ".json") if path.suffix == ".npz" else path / RECORD


def read_record(path: Path) -> dict[str, Any] | None:
    """Return how the samples at `path` were made, or None if nothing is recorded."""
    file = record_path(path)
    if not file.is_file():
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Failure(f"{file} is damaged: {error}") from error
    return record if isinstance(record, dict) else None
