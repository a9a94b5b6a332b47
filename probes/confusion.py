"""Which class was taken for which: counts, and how they travel in the note of a row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from repa_eval.errors import parsing
from repa_eval.runtime.files import parse_json

Array = np.ndarray[Any, Any]
Counts = Mapping[int, Mapping[int, int]]  # true class -> predicted class -> images; what does not occur is left out


def confusion(labels: Array, predicted: Array) -> dict[int, dict[int, int]]:
    """Return how often images of class `labels` (M,) were taken for class `predicted` (M,), in order of the classes."""
    found: dict[int, dict[int, int]] = {}
    pairs, counts = np.unique(np.stack([labels, predicted], axis=1), axis=0, return_counts=True)
    for (true, taken), count in zip(pairs.tolist(), counts.tolist(), strict=True):
        found.setdefault(true, {})[taken] = count
    return found


def as_note(counts: Counts, *, chosen: str, remark: str | None = None) -> str:
    """Return compact JSON for a row's note: {"confusion": {true: {predicted: images}}, "chosen": ..., "remark": ...}.

    A note in JSON is data beside the number, not a warning.
    """
    said = {"confusion": counts, "chosen": chosen} | ({"remark": remark} if remark else {})
    return json.dumps(said, separators=(",", ":"))


def from_note(note: str | None) -> dict[int, dict[int, int]]:
    """Return the counts in a row's note; empty where it holds none. Failure for a note that is damaged."""
    if not note or not note.startswith("{"):
        return {}
    with parsing("the confusion in a row's note is damaged"):
        found = parse_json(note, "the confusion in a row's note is damaged").get("confusion", {})
        return {int(true): {int(taken): int(count) for taken, count in row.items()} for true, row in found.items()}


def most_confused(counts: Counts, most: int = 10) -> list[tuple[int, int, int, float]]:
    """Return (true, predicted, images, share of the true class) of the most frequent mistakes."""
    found = [
        (true, taken, count, count / sum(row.values()))
        for true, row in counts.items()
        for taken, count in row.items()
        if taken != true
    ]
    return sorted(found, key=lambda each: (-each[2], each[:2]))[:most]
