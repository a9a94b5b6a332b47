"""The rows with the largest inner products, found in square tiles of the Gram matrix: each pair is multiplied once."""

from __future__ import annotations

import numpy as np

from repa_eval.metrics.shared.checks import Array

TILE = 1024  # rows and columns of a tile: 4 MB of float32 products
KEPT = 4  # candidates of a row, in multiples of k, before they are reduced to the k best


class Best:
    """The k best columns so far of each row of a block of rows.

    A value that does not exceed the k-th best of its row is discarded at once; the others wait in lists, which are
    merged when they have grown.
    """

    def __init__(self, values: Array, first: int, k: int) -> None:
        """Start with the values (rows, columns) of the columns first, first + 1, ...; at least k columns."""
        order = np.argpartition(values, values.shape[1] - k, axis=1)[:, -k:]
        self.values: Array = np.take_along_axis(values, order, axis=1)  # (rows, k)
        self.columns: Array = order + first
        self.least: Array = self.values.min(axis=1)
        self._waiting: list[tuple[Array, Array, Array]] = []
        self._count = 0

    def add(self, values: Array, first: int) -> None:
        """Take the values (rows, columns) of the columns first, first + 1, ..."""
        places = np.flatnonzero(values > self.least[:, None])
        rows, columns = np.divmod(places, values.shape[1])
        self._keep(rows, columns + first, values.ravel()[places])

    def add_transposed(self, values: Array, first: int) -> None:
        """Take values as `add` does, given with a line for each column: (columns, rows)."""
        places = np.flatnonzero(values > self.least)
        columns, rows = np.divmod(places, values.shape[1])
        self._keep(rows, columns + first, values.ravel()[places])

    def _keep(self, rows: Array, columns: Array, values: Array) -> None:
        self._waiting.append((rows, columns, values))
        self._count += len(rows)
        if self._count > KEPT * self.values.size:
            self.merge()

    def merge(self) -> None:
        """Reduce the waiting values to the k best of each row, largest first."""
        k, height = self.values.shape[1], len(self.values)
        waiting = self._waiting
        rows = np.concatenate([np.repeat(np.arange(height), k), *(part[0] for part in waiting)])
        columns = np.concatenate([self.columns.ravel(), *(part[1] for part in waiting)])
        values = np.concatenate([self.values.ravel(), *(part[2] for part in waiting)])
        order = np.lexsort((columns, -values, rows))  # by row, then by falling value, then by column
        starts = np.searchsorted(rows[order], np.arange(height))
        chosen = order[starts[:, None] + np.arange(k)]  # (rows, k)
        self.values, self.columns, self.least = values[chosen], columns[chosen], values[chosen[:, -1]]
        self._waiting, self._count = [], 0


def largest_products(x: Array, offsets: Array, *, k: int, with_self: bool) -> Array:
    """Return the columns j (N, k) with the largest <x_i, x_j> + offsets_j of each row of x (N, D), largest first.

    A row is not among its own unless `with_self`. Products in the dtype of x; memory O(N k) beyond one tile.
    """
    n, size = len(x), max(TILE, 2 * (k + 1))
    blocks = [slice(start, min(start + size, n)) for start in range(0, n, size)]
    if len(blocks) > 1 and blocks[-1].stop - blocks[-1].start < k + 1:  # too few columns to start a list of k
        blocks[-2:] = [slice(blocks[-2].start, n)]
    best = []
    for rows in blocks:
        tile = x[rows] @ x[rows].T
        tile += offsets[rows]
        if not with_self:
            np.fill_diagonal(tile, -np.inf)
        best.append(Best(tile, rows.start, k))
    for i, rows in enumerate(blocks):
        for j in range(i + 1, len(blocks)):
            columns = blocks[j]
            tile = x[rows] @ x[columns].T
            best[j].add_transposed(tile + offsets[rows, None], rows.start)
            tile += offsets[columns]
            best[i].add(tile, columns.start)
    for block in best:
        block.merge()
    found: Array = np.concatenate([block.columns for block in best])
    return found
