"""Count, mean and scatter of features that arrive in batches: Chan's pairwise update, float64, mergeable."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from repa_eval.errors import UserError
from repa_eval.metrics.shared.checks import Array, as_array, matrix

CHUNK = 512  # rows that are folded at a time
NARROW, WIDE_BLOCK = 512, 256  # up to NARROW features the scatter matrix is one block, else of blocks of this side


class Moments:
    """Count, mean and scatter of features that arrive in batches; in float64, whatever the batches' dtype.

    n: rows seen. mean (D,). m2 (D, D): sum of (x - mean)(x - mean)^T. Rows are folded in chunks of 512, so that
    the result does not depend on how a sequence of rows was cut into batches, and small batches cost no more than
    large. Of the symmetric m2 only blocks on and right of the diagonal are kept: 0.56 D^2 numbers at D = 2048.
    """

    def __init__(self, n: int = 0, mean: ArrayLike = (), m2: ArrayLike = ()) -> None:
        self._n = n
        self._mean = np.array(mean, dtype=np.float64)
        self._blocks = [view.copy() for view in _upper(np.asarray(m2, dtype=np.float64))] if n else []
        self._waiting: list[Array] = []  # batches not yet folded, fewer rows than a chunk together

    @property
    def n(self) -> int:
        """Number of rows seen."""
        return self._n + sum(map(len, self._waiting))

    @property
    def mean(self) -> Array:
        """Mean of the rows, (D,); UserError before the first row."""
        self._refuse_nothing()
        if not self._waiting:
            return self._mean.copy()
        rows = np.concatenate(self._waiting, dtype=np.float64)
        return _combined_mean(self._n, self._mean, len(rows), rows.mean(axis=0))

    @property
    def m2(self) -> Array:
        """Sum of the outer products of the rows about their mean, (D, D); UserError before the first row."""
        self._refuse_nothing()
        width = self._width
        full = np.zeros((width, width))
        views = _upper(full)
        for view, block in zip(views, self._blocks or views, strict=True):
            view[...] = block
        if self._waiting:
            _fold(self._n, self._mean, views, np.concatenate(self._waiting, dtype=np.float64))
        size = _size(width)
        for start in range(0, width, size):
            full[start + size :, start : start + size] = full[start : start + size, start + size :].T
        return full

    @property
    def covariance(self) -> Array:
        """Covariance of the rows with ddof 1, (D, D); UserError for fewer than two rows."""
        self._refuse_nothing()
        if self.n < 2:
            raise UserError(f"a covariance needs at least 2 samples; given is {self.n}")
        scatter = self.m2
        scatter /= self.n - 1
        return scatter

    def update(self, features: ArrayLike) -> None:
        """Add a batch of rows (B, D); UserError for another width than before, NaN or infinity."""
        batch = as_array(features)
        if batch.ndim == 2 and len(batch) == 0:
            return
        batch = matrix("features", batch)
        self._check_width(batch.shape[1])
        while len(batch):
            count = CHUNK - sum(map(len, self._waiting))
            self._waiting.append(batch[:count].copy())  # the caller may reuse its buffer
            batch = batch[count:]
            if sum(map(len, self._waiting)) == CHUNK:
                rows, self._waiting = np.concatenate(self._waiting, dtype=np.float64), []
                self._blocks = self._blocks or _zeros(rows.shape[1])
                self._n, self._mean = _fold(self._n, self._mean, self._blocks, rows)

    def merge(self, other: Moments) -> None:
        """Add all that `other` has seen: the moments of both sets of rows, exact up to rounding."""
        if not other.n:
            return
        self._check_width(other._width)
        if not self._n and not self._waiting:
            self._n, self._mean, self._blocks = other.n, other.mean, [view.copy() for view in _upper(other.m2)]
            return
        self._blocks = self._blocks or _zeros(self._width)
        self._mean = self._mean if self._n else np.zeros(self._width)
        _add(self._n, self._mean, self._blocks, other.n, other.mean, _upper(other.m2))
        self._mean = _combined_mean(self._n, self._mean, other.n, other.mean)
        self._n += other.n

    @property
    def _width(self) -> int:
        return self._waiting[0].shape[1] if self._waiting else len(self._mean)

    def _refuse_nothing(self) -> None:
        if self.n == 0:
            raise UserError("there are no features yet: moments of zero samples do not exist")

    def _check_width(self, width: int) -> None:
        if self.n and width != self._width:
            raise UserError(f"features have {width} columns; those before had {self._width}")


def moments(features: ArrayLike) -> Moments:
    """Return the Moments of all rows of features (N, D) at once."""
    result = Moments()
    result.update(matrix("features", features))
    return result


def _size(width: int) -> int:
    return NARROW if width <= NARROW else WIDE_BLOCK


def _parts(width: int) -> list[tuple[slice, slice]]:
    """Return the blocks (rows, columns) on and right of the diagonal."""
    size = _size(width)
    cuts = [slice(start, min(start + size, width)) for start in range(0, width, size)]
    return [(rows, columns) for place, rows in enumerate(cuts) for columns in cuts[place:]]


def _upper(full: Array) -> list[Array]:
    return [full[part] for part in _parts(len(full))]


def _zeros(width: int) -> list[Array]:
    return [np.zeros((rows.stop - rows.start, columns.stop - columns.start)) for rows, columns in _parts(width)]


def _fold(n: int, mean: Array, blocks: Sequence[Array], rows: Array) -> tuple[int, Array]:
    """Add float64 rows (B, D), which are overwritten, to blocks of m2, in place; return the new count and mean."""
    own = rows.mean(axis=0)
    rows -= own
    cuts = {part.start: np.ascontiguousarray(rows[:, part]) for part, _ in _parts(rows.shape[1])}
    products = (cuts[a.start].T @ cuts[b.start] for a, b in _parts(rows.shape[1]))  # numpy sees A^T A: half the work
    _add(n, mean, blocks, len(rows), own, products)
    return n + len(rows), _combined_mean(n, mean, len(rows), own)


def _add(n: int, mean: Array, blocks: Sequence[Array], m: int, other: Array, more: Iterable[Array]) -> None:
    """Chan's pairwise update of m2, block by block and in place: n rows of `mean`, and m of mean `other`."""
    shift = other - mean if n else other
    for block, product, (rows, columns) in zip(blocks, more, _parts(len(other)), strict=True):
        block += product
        if n:
            outer = np.outer(shift[rows], shift[columns])
            outer *= n * m / (n + m)
            block += outer


def _combined_mean(n: int, mean: Array, m: int, other: Array) -> Array:
    if not n:
        return other
    return mean + (other - mean) * (m / (n + m))
