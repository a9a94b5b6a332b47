"""Mutual k-NN: how many of its nearest neighbours a sample keeps from one representation to the other.

platonic-rep @ dcd76ba; arXiv 2405.07987, section 3.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from repa_eval.interfaces.metric import alignment_metric
from repa_eval.metrics.shared.neighbours import neighbour_lists


@alignment_metric(
    "mutual_knn",
    definition="share of the k nearest neighbours (inner product) in one space that are so in the other (k=10)",
    range="0..1, 1 = same lists, k / (N - 1) = chance",
    shift=False,
    meaning="share of nearest neighbours that hidden states and teacher features have in common",
)
def mutual_knn(x: ArrayLike, y: ArrayLike, *, k: int = 10) -> float:
    """Return the mean share (0..1) of the k neighbours in x (N, D1) that are neighbours in y (N, D2) too.

    Neighbours by raw inner product, self excluded. Independent features give k / (N - 1). NaN for constant features.
    UserError: N <= k, k < 1, unequal N, NaN or infinity.
    """
    lists = neighbour_lists(x, y, k=k)
    if isinstance(lists, float):
        return lists
    first, second = lists
    rows = np.arange(len(first))[:, None] * len(first)  # one number for each (sample, neighbour)
    return float(np.isin(first + rows, second + rows).mean())
