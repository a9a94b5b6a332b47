"""Unbiased CKA with the rbf kernel, its width scaled by the median distance, under a name of its own."""

from __future__ import annotations

from numpy.typing import ArrayLike

from repa_eval.interfaces.metric import alignment_metric
from repa_eval.metrics.cka import cka


@alignment_metric(
    "cka_rbf_unbiased",
    definition="CKA of the kernel exp(-d^2 / (2 median d^2)), unbiased HSIC",
    range="about 0..1, 1 = same up to rotation and scale; slightly below 0 is possible",
    meaning="unbiased centred kernel alignment with a Gaussian kernel of median width",
)
def cka_rbf_unbiased(x: ArrayLike, y: ArrayLike, *, factor: float = 1.0) -> float:
    """Return `cka_rbf` with the unbiased HSIC (Song et al. 2012); errors and NaN as `cka`."""
    return cka(x, y, unbiased=True, kernel="rbf_median", sigma=factor)
