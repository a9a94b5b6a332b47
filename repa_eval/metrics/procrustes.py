"""Procrustes similarity of centred features of size 1, and its distances (Ding et al. 2021, arXiv 2108.01661).

Higher is closer, as in every alignment metric here: 1 - d^2 / 2 for Ding's d^2 = 2 - 2 |X^T Y|_*.
"""

from __future__ import annotations

from numpy.typing import ArrayLike
from scipy import linalg

from repa_eval.interfaces.metric import alignment_metric
from repa_eval.metrics.shared.checks import Array
from repa_eval.metrics.shared.kernels import near_one
from repa_eval.metrics.shared.prepared import Prepared, centred, constant, paired


@alignment_metric(
    "procrustes",
    definition="nuclear norm |X^T Y|_* of centred features of norm 1: 1 - d^2 / 2 of the Procrustes distance d",
    range="0..1, 1 = same up to rotation and scale; tends to 1 by itself where N < 4 D",
    meaning="agreement of hidden states and teacher features after the best rotation",
)
def procrustes(x: ArrayLike, y: ArrayLike) -> float:
    """Return the Procrustes similarity of paired features x (N, D1) and y (N, D2).

    The narrower side counts as padded with zeros. NaN for constant features.
    UserError: N < 2, unequal N, NaN or infinity.
    """
    first, second = paired(x, y, at_least=2)
    nan = constant(first, second)
    if nan is not None:
        return nan
    a, b = _unit(first), _unit(second)
    return min(nuclear_norm(a, b), 1.0)


def _unit(side: Prepared) -> Array:
    return side.once("unit size", lambda: _of_norm_1(near_one(centred(side))))


def _of_norm_1(x: Array) -> Array:
    unit: Array = x / linalg.norm(x)
    return unit


def nuclear_norm(a: Array, b: Array) -> float:
    """Return the sum of the singular values of a^T b; through N x N where the features are wider than that."""
    n = len(a)
    if n < min(a.shape[1], b.shape[1]):  # a = L Q with orthonormal rows of Q, which change no singular value
        a, b = (linalg.rq(side, mode="economic")[0] for side in (a, b))
    return float(linalg.svdvals(a.T @ b).sum())
