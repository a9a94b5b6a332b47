"""RV coefficient (Robert and Escoufier 1976): the biased linear CKA without any constant in its denominator."""

from __future__ import annotations

from numpy.typing import ArrayLike

from repa_eval.interfaces.metric import alignment_metric
from repa_eval.metrics.cka import linear_gram
from repa_eval.metrics.shared.kernels import ratio
from repa_eval.metrics.shared.prepared import constant, paired


@alignment_metric(
    "rv",
    definition="|X^T Y|_F^2 / (|X^T X|_F |Y^T Y|_F) of centred features: biased linear CKA, nothing added",
    range="0..1, 1 = same up to rotation and scale; tends to 1 by itself where N < 4 D",
    meaning="RV coefficient of hidden states and teacher features",
)
def rv(x: ArrayLike, y: ArrayLike) -> float:
    """Return the RV coefficient of paired features x (N, D1) and y (N, D2); errors and NaN as `cka`."""
    first, second = paired(x, y, at_least=2)
    nan = constant(first, second)
    if nan is not None:
        return nan
    K, L = linear_gram(first), linear_gram(second)
    return ratio(K.hsic(L), K.own, L.own, eps=0.0)
