"""PWCCA (Morcos et al. 2018, arXiv 1806.05759): canonical correlations weighted by what they explain of one side."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import linalg

from repa_eval.interfaces.metric import alignment_metric
from repa_eval.metrics.shared.cca import correlations, thin_svd
from repa_eval.metrics.shared.checks import Array
from repa_eval.metrics.shared.prepared import centred, constant, paired


@alignment_metric(
    "pwcca",
    definition="canonical correlations weighted by the projections of the narrower side on its canonical variates",
    range="0..1, 1 = same subspace; tends to 1 by itself where N < 10 (D1 + D2)",
    symmetric=False,
    rotation=False,
    meaning="projection-weighted canonical correlation of hidden states and teacher features",
)
def pwcca(x: ArrayLike, y: ArrayLike) -> float:
    """Return the PWCCA of paired features x (N, D1) and y (N, D2).

    sum alpha_i rho_i / sum alpha_i with alpha_i = sum_j |<h_i, x_j>|, h_i the i-th canonical variate of length 1 and
    x_j the centred columns of the side of lower rank (of x where the ranks are equal, hence not symmetric). A rotation
    mixes the columns and with them the absolute values. Errors and NaN as `svcca`.
    """
    first, second = paired(x, y, at_least=2)
    nan = constant(first, second)
    if nan is not None:
        return nan
    if len(thin_svd(second)[1]) < len(thin_svd(first)[1]):
        first, second = second, first
    rho, variates = correlations(thin_svd(first)[0], thin_svd(second)[0])
    return _weighted(rho, variates, centred(first))


def pwcca_google(x: ArrayLike, y: ArrayLike) -> float:
    """Return what google/svcca @ 1f3fbf1 computes for x (N, D1), y (N, D2), D1 <= D2: another number than `pwcca`.

    Its directions are D = (x - m) U + m with U the left singular vectors of Sx^-1/2 Sxy Sy^-1/2: the whitening is
    missing and the means are added back. h_i are the columns of Q in D = QR, the x_j of the weights are not centred.
    """
    first, second = paired(x, y, at_least=2)
    a, b = centred(first), centred(second)
    left, rho, _ = linalg.svd(_inverse_root(a.T @ a) @ (a.T @ b) @ _inverse_root(b.T @ b), full_matrices=False)
    raw = first.values.astype(np.float64)
    variates, _ = linalg.qr(a @ left + raw.mean(axis=0), mode="economic")
    return _weighted(rho, variates, raw)


def _weighted(rho: Array, variates: Array, columns: Array) -> float:
    alpha = np.abs(variates.T @ columns).sum(axis=1)
    return float(alpha @ rho / alpha.sum())


def _inverse_root(square: Array) -> Array:
    values, vectors = linalg.eigh(square)
    root: Array = (vectors / np.sqrt(values)) @ vectors.T
    return root
