"""The parts of a set that has no splits of its own, by a hash of the index; which samples two sets share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from repa_eval.interfaces.image_source import ImageSource, chunks, rows_at_once
from repa_eval.runtime.seeding import derive

Array = np.ndarray[Any, Any]
THREE_PARTS = {"test": 0.2, "val": 0.1, "train": 0.7}
TWO_PARTS = {"val": 0.1, "train": 0.9}
ONE = 1 << 63  # hashes are below it


def hashes(count: int, seed: int) -> Array:
    """Return a number in [0, 1) for each index 0..count-1 that depends on the seed and the index alone."""
    return np.array([derive(seed, "probe part", index) for index in range(count)], dtype=np.float64) / ONE


def parts_of(values: Array, shares: Mapping[str, float]) -> dict[str, Array]:
    """Return the rows of each part: the first takes the hashes below its share, the next those above, and so on."""
    bounds = np.cumsum(list(shares.values()))
    which = np.searchsorted(bounds[:-1], values, side="right")
    return {name: np.flatnonzero(which == place) for place, name in enumerate(shares)}


def balanced(rows: Array, labels: Array, values: Array, most: int) -> Array:
    """Return `most` of the rows, sorted, as equally many of every class as there are; within a class by hash."""
    if len(rows) <= most:
        return rows
    by_class = rows[np.lexsort((values[rows], labels[rows]))]
    _, first = np.unique(labels[by_class], return_index=True)
    sizes = np.diff(np.append(first, len(by_class)))
    rank = np.arange(len(by_class)) - np.repeat(first, sizes)
    return np.sort(by_class[np.lexsort((values[by_class], rank))[:most]])


def contents(source: ImageSource) -> list[bytes]:
    """Return a hash of the content of each sample: of its image, or of its latent where there are no images."""
    kind = next(kind for kind in ("images", "latents", "moments") if kind in source.gives)
    shape = source.image_shape if kind == "images" else source.latent_shape
    found: list[bytes] = []
    for rows in chunks(len(source), rows_at_once(shape)):
        values: Sequence[Any] = getattr(source.fetch(rows, (kind,)), kind).numpy()
        found += [hashlib.blake2b(np.ascontiguousarray(value).tobytes(), digest_size=16).digest() for value in values]
    return found
