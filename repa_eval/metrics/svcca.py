"""SVCCA (Raghu et al. 2017, arXiv 1706.05806): mean canonical correlation of the leading singular directions.

From orthonormal bases, hence the same at every call; platonic-rep's own one draws a random projection each time.
"""

from __future__ import annotations

from numpy.typing import ArrayLike

from repa_eval.interfaces.metric import alignment_metric
from repa_eval.metrics.shared.cca import correlations, kept_directions, thin_svd
from repa_eval.metrics.shared.prepared import constant, paired


@alignment_metric(
    "svcca",
    definition="mean canonical correlation of the singular directions that hold 99 % of each side's variance",
    range="0..1, 1 = same subspace; tends to 1 by itself where N < 10 (D1 + D2)",
    meaning="mean canonical correlation of the leading directions of hidden states and teacher features",
)
def svcca(x: ArrayLike, y: ArrayLike, *, threshold: float = 0.99, k: int | None = None) -> float:
    """Return the SVCCA of paired features x (N, D1) and y (N, D2).

    Of each centred side the fewest singular directions whose s^2 reach `threshold` of their sum are kept, or the first
    k; the mean is over as many correlations as the smaller side has directions. NaN for constant features.
    UserError: N < 2, unequal N, NaN or infinity, k above a side's rank.
    """
    first, second = paired(x, y, at_least=2)
    nan = constant(first, second)
    if nan is not None:
        return nan
    kept = []
    for side in (first, second):
        basis, s = thin_svd(side)
        kept.append(basis[:, : kept_directions(s, threshold=threshold, k=k)])
    return float(correlations(*kept)[0].mean())
