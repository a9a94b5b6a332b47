"""Edit-distance k-NN: Levenshtein distance of the two ordered neighbour lists of a sample (platonic-rep @ dcd76ba)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from repa_eval.interfaces.metric import alignment_metric
from repa_eval.metrics.shared.checks import Array
from repa_eval.metrics.shared.neighbours import neighbour_lists


@alignment_metric(
    "edit_distance_knn",
    definition="1 - mean Levenshtein distance of the two ordered neighbour lists / k (k=10)",
    range="0..1, 1 = same lists",
    shift=False,
    meaning="agreement of the ordered neighbour lists of hidden states and teacher features by edit distance",
)
def edit_distance_knn(x: ArrayLike, y: ArrayLike, *, k: int = 10) -> float:
    """Return 1 - (mean Levenshtein distance of the neighbour lists) / k, in 0..1.

    x (N, D1), y (N, D2); lists of k neighbours, most similar first. NaN for constant features.
    UserError: N <= k, k < 1, unequal N, NaN or infinity.
    """
    lists = neighbour_lists(x, y, k=k)
    return lists if isinstance(lists, float) else 1.0 - float(_distances(*lists).mean()) / k


def _distances(first: Array, second: Array) -> Array:
    """Return the Levenshtein distance (N,) of each pair of lists (N, k): the textbook table, one sample per lane."""
    n, k = first.shape
    above = np.tile(np.arange(k + 1)[:, None], (1, n))  # row i - 1 of the table: j insertions
    for i in range(k):
        row = np.full_like(above, i + 1)
        for j in range(k):
            replaced = above[j] + (first[:, i] != second[:, j])
            row[j + 1] = np.minimum(replaced, np.minimum(above[j + 1], row[j]) + 1)
        above = row
    return above[k]
