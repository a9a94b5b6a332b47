"""CKA with the rbf kernel, its width scaled by the median distance, under a name of its own."""

from __future__ import annotations

from numpy.typing import ArrayLike

from repa_eval.interfaces.metric import alignment_metric
from repa_eval.metrics.cka import cka


@alignment_metric(
    "cka_rbf",
    definition="CKA of the kernel exp(-d^2 / (2 median d^2)), biased HSIC",
    range="0..1, 1 = same up to rotation and scale; grows by itself where N < 4 D",
    meaning="centred kernel alignment with a Gaussian kernel of median width",
)
def cka_rbf(x: ArrayLike, y: ArrayLike, *, factor: float = 1.0) -> float:
    """Return the rbf CKA of x (N, D1) and y (N, D2), width^2 = factor^2 * median of all squared distances.

    The median is over all N^2 pairs, a sample and itself included, the lower one of two: google's and ckatorch's rule.
    N^2 / 2 distances are held for it. Errors and NaN as `cka`.
    """
    return cka(x, y, kernel="rbf_median", sigma=factor)
