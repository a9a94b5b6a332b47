"""Cycle k-NN: does the way to the neighbours in one representation and on to theirs in the other lead back?

platonic-rep @ dcd76ba.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from repa_eval.interfaces.metric import alignment_metric
from repa_eval.metrics.shared.neighbours import neighbour_lists


@alignment_metric(
    "cycle_knn",
    definition="share of samples reached again by a step to a neighbour in y and a step to a neighbour in x (k=10)",
    range="0..1, about 1 - exp(-k^2 / N) = chance; of equal features below 1",
    best=None,
    symmetric=False,
    shift=False,
    meaning="share of images reached again by a step to a neighbour in each of the two feature spaces",
)
def cycle_knn(x: ArrayLike, y: ArrayLike, *, k: int = 10) -> float:
    """Return the share of samples found among the x-neighbours (N, D1) of their own y-neighbours (N, D2).

    Not symmetric, and below 1 even for x = y: a sample need not be a neighbour of its neighbours. Grows with k: for
    independent features about 1 - exp(-k^2 / N). NaN for constant features.
    UserError: N <= k, k < 1, unequal N, NaN or infinity.
    """
    lists = neighbour_lists(x, y, k=k)
    if isinstance(lists, float):
        return lists
    in_x, in_y = lists
    reached = in_x[in_y]  # (N, k, k)
    home = np.arange(len(in_x))[:, None, None]
    return float((reached == home).any(axis=(1, 2)).mean())
