"""CKA with the rbf kernel of fixed width 1, as platonic-rep has it, under a name of its own."""

from __future__ import annotations

from numpy.typing import ArrayLike

from repa_eval.interfaces.metric import alignment_metric
from repa_eval.metrics.cka import cka


@alignment_metric(
    "cka_rbf_fixed",
    definition="CKA of the kernel exp(-d^2 / (2 sigma^2)) with sigma = 1, biased HSIC",
    range="0..1; meant for rows of length 1: of raw features the kernel is the identity, and the value 1",
    chance=None,
    scale=False,
    meaning="centred kernel alignment with a Gaussian kernel of width 1",
)
def cka_rbf_fixed(x: ArrayLike, y: ArrayLike, *, sigma: float = 1.0) -> float:
    """Return the rbf CKA of x (N, D1) and y (N, D2) with the width `sigma`, in the units of the features.

    Where all distances are far above sigma both kernels are the identity, whose biased CKA is 1 whatever the features
    are. Errors and NaN as `cka`.
    """
    return cka(x, y, kernel="rbf", sigma=sigma)
