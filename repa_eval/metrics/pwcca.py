"""PWCCA (Morcos et al. 2018, arXiv 1806.05759): canonical correlations weighted by what they explain of one side."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

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
    return weighted(rho, variates, centred(first))


def weighted(rho: Array, variates: Array, columns: Array) -> float:
    """Return the mean of correlations rho (K,) of variates (N, K), weighted by their products with columns (N, D)."""
    alpha = np.abs(variates.T @ columns).sum(axis=1)
    return float(alpha @ rho / alpha.sum())
