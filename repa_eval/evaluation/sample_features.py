"""Features of many images: read ahead, extracted once, streamed into moments or kept, merged over processes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from repa_eval.errors import UserError
from repa_eval.interfaces.extractor import Array, Extractor, Features, features_of
from repa_eval.interfaces.image_source import ImageSource, rows_at_once
from repa_eval.metrics.shared.moments import Moments
from repa_eval.metrics.shared.moments import moments as moments_of

AHEAD = 2  # batches that are read while one is in the network; one, if they are large
SMALL = 64 << 20  # bytes of features that are kept though only their moments are asked for
KINDS = ("features", "logits", "spatial")


class Workers(Protocol):
    """The processes that share the work; see repa_eval.runtime.distributed."""

    @property
    def rank(self) -> int:
        """The number of this process."""

    @property
    def count(self) -> int:
        """The number of processes."""

    def of(self, missing: Sequence[int], batch_size: int) -> list[int]:
        """Return this process's part of the indices, in whole batches."""

    def gather(self, parts: list[Any]) -> list[Any]:
        """Return the lists of all processes as one, in every process."""


@dataclass
class Gathered:
    """What is known of n images: rows by kind, in the order of the images, and moments by kind."""

    n: int = 0
    rows: dict[str, Array] = field(default_factory=dict)
    moments: dict[str, Moments] = field(default_factory=dict)


def gather(
    source: ImageSource,
    judge: Extractor,
    *,
    keep: Collection[str] = ("features", "logits"),
    stream: Collection[str] = (),
    batch_size: int = 256,
    workers: Workers | None = None,
) -> Gathered | None:
    """Return what a judge sees in the images of a source; None in every process but the first.

    keep: kinds whose rows are kept; stream: kinds of which moments are enough, and are all that is kept of a large
    set. batch_size: images per forward, fewer where they are so large that a batch would not fit into memory. UserError
    for a source without images and for features that are NaN, with their count.
    """
    if not len(source):
        raise UserError(f"{source.name}: no images")
    alone = workers is None or workers.count == 1
    batch_size = rows_at_once(source.image_shape, batch_size)
    mine = range(len(source)) if workers is None or alone else workers.of(range(len(source)), batch_size)
    part = _Part(len(source), len(mine), keep, stream)
    ahead = AHEAD if rows_at_once(source.image_shape, AHEAD * batch_size) == AHEAD * batch_size else 1
    for indices, images in _read_ahead(source, _batches(mine, batch_size), ahead):
        part.add(indices, features_of(judge, images))
    if workers is None or alone:
        part.refuse_nan(source.name, judge.name)
        return Gathered(len(source), part.rows, part.moments)
    return _merged(source, judge, part, workers)


class _Part:
    """One process's images: its rows in the order of `mine`, and moments of what is streamed."""

    def __init__(self, total: int, count: int, keep: Collection[str], stream: Collection[str]) -> None:
        self.total, self.count, self.keep, self.stream = total, count, keep, stream
        self.rows: dict[str, Array] = {}
        self.moments: dict[str, Moments] = {kind: Moments() for kind in stream}
        self.indices: list[int] = []
        self.bad: list[int] = []

    def add(self, indices: Sequence[int], found: Features) -> None:
        given = {kind: array for kind in KINDS if (array := getattr(found, kind)) is not None}
        finite = np.all([np.isfinite(array).all(axis=1) for array in given.values()], axis=0)  # (B,)
        self.bad += [index for index, good in zip(indices, finite, strict=True) if not good]
        place = len(self.indices)
        self.indices += indices
        for kind, array in given.items():
            if kind in self.stream:
                self.moments[kind].update(array[finite])
            if kind in self.keep or (kind in self.stream and self.total * array.shape[1] * 4 <= SMALL):
                if kind not in self.rows:
                    self.rows[kind] = np.empty((self.count, array.shape[1]), dtype=array.dtype)
                self.rows[kind][place : place + len(array)] = array

    def refuse_nan(self, source: str, judge: str) -> None:
        if self.bad:
            raise UserError(
                f"extractor {judge} gives NaN or infinity for {len(self.bad)} of {self.total} images of {source}, "
                f"first for image {min(self.bad)}; look at these images, or at the extractor's weights"
            )


def _merged(source: ImageSource, judge: Extractor, part: _Part, workers: Workers) -> Gathered | None:
    """Return all processes' parts as one, rows in the order of the images; None but in the first process."""
    parts: list[_Part] = workers.gather([part])
    whole = parts[0]
    whole.bad = [index for each in parts for index in each.bad]
    whole.refuse_nan(source.name, judge.name)  # in every process: none of them waits for the others
    if workers.rank:
        return None
    moments = whole.moments
    for kind, seen in moments.items():
        for each in parts[1:]:
            seen.merge(each.moments[kind])
    order = np.argsort(np.concatenate([each.indices for each in parts if each.indices]), kind="stable")
    kinds = {kind for each in parts for kind in each.rows}
    rows = {kind: np.concatenate([each.rows[kind] for each in parts if kind in each.rows])[order] for kind in kinds}
    # of rows that are all here, the moments in the order of one process alone: the same to the last bit
    moments.update({kind: moments_of(rows[kind]) for kind in moments if kind in rows})
    return Gathered(len(source), rows, moments)


def _batches(indices: Sequence[int], size: int) -> Iterator[list[int]]:
    for first in range(0, len(indices), size):
        yield list(indices[first : first + size])


def _read_ahead(source: ImageSource, batches: Iterable[list[int]], ahead: int) -> Iterator[tuple[list[int], Tensor]]:
    """Yield (indices, images) while the next `ahead` batches are read by another thread, in order."""
    waiting: list[tuple[list[int], Any]] = []
    with ThreadPoolExecutor(1) as reader:
        try:
            for batch in batches:
                waiting.append((batch, reader.submit(source.pixels, batch)))
                if len(waiting) > ahead:
                    indices, images = waiting.pop(0)
                    yield indices, images.result()
            for indices, images in waiting:
                yield indices, images.result()
        finally:
            for _, images in waiting:
                images.cancel()
