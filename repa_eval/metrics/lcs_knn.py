"""LCS k-NN: longest common subsequence of the two ordered neighbour lists of a sample (platonic-rep @ dcd76ba)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from repa_eval.interfaces.metric import alignment_metric
from repa_eval.metrics.shared.checks import Array
from repa_eval.metrics.shared.neighbours import neighbour_lists


@alignment_metric(
    "lcs_knn",
    definition="mean length of the longest common subsequence of the two ordered neighbour lists (k=10)",
    range="0..k, k = same lists",
    best=10.0,
    shift=False,
    meaning="longest common subsequence of the ordered neighbour lists of hidden states and teacher features",
)
def lcs_knn(x: ArrayLike, y: ArrayLike, *, k: int = 10) -> float:
    """Return the mean length (0..k, not divided by k) of the longest common subsequence of the neighbour lists.

    x (N, D1), y (N, D2); lists of k neighbours, most similar first. NaN for constant features.
    UserError: N <= k, k < 1, unequal N, NaN or infinity.
    """
    lists = neighbour_lists(x, y, k=k)
    return lists if isinstance(lists, float) else float(_lengths(*lists).mean())


def _lengths(first: Array, second: Array) -> Array:
    """Return the LCS length (N,) of each pair of lists (N, k): the textbook table, one sample per lane."""
    n, k = first.shape
    above = np.zeros((k + 1, n), dtype=np.int64)  # row i - 1 of the table
    for i in range(k):
        row = np.zeros_like(above)
        for j in range(k):
            longer = above[j] + 1
            row[j + 1] = np.where(first[:, i] == second[:, j], longer, np.maximum(above[j + 1], row[j]))
        above = row
    return above[k]
