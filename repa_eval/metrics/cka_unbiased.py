"""Unbiased linear CKA under a name of its own, so that tables and commands can ask for it beside the biased one."""

from __future__ import annotations

from numpy.typing import ArrayLike

from repa_eval.interfaces.metric import alignment_metric
from repa_eval.metrics.cka import cka


@alignment_metric(
    "cka_unbiased",
    definition="linear CKA with the unbiased HSIC of Song et al. 2012",
    range="about 0..1, 1 = same up to rotation and scale; slightly below 0 is possible",
    meaning="unbiased centred kernel alignment of hidden states and teacher features",
)
def cka_unbiased(x: ArrayLike, y: ArrayLike) -> float:
    """Return the linear CKA of x (N, D1) and y (N, D2) with the unbiased HSIC (Song et al. 2012); errors as `cka`."""
    return cka(x, y, unbiased=True)
