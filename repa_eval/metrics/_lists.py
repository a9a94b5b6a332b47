"""The start of every metric that compares lists of neighbours and nothing else."""

from __future__ import annotations

from numpy.typing import ArrayLike

from repa_eval.metrics._checks import Array, is_constant, neighbour_count, paired
from repa_eval.metrics._kernels import nearest


def neighbour_lists(x: ArrayLike, y: ArrayLike, *, k: int) -> tuple[Array, Array] | None:
    """Return the neighbours (N, k) in x (N, D1) and in y (N, D2), most similar first; None for constant features.

    Inner products, self excluded; among equal rows any choice of neighbours would be arbitrary.
    UserError: N <= k, k < 1, unequal N, NaN or infinity.
    """
    first, second = paired(x, y, at_least=1)
    neighbour_count(k, len(first))
    if is_constant(first) or is_constant(second):
        return None
    return nearest(first, k=k), nearest(second, k=k)
