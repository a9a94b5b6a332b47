"""CKA: centred kernel alignment (Kornblith et al. 2019, arXiv 1905.00414), linear or rbf, biased or unbiased HSIC.

Conventions of minyoungg/platonic-rep @ dcd76ba. Features are centred first, which changes no value and saves the digits
that a large mean would cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from repa_eval.errors import UserError, unknown
from repa_eval.metrics import _kernels
from repa_eval.metrics._checks import Array, is_constant, paired
from repa_eval.metrics._registry import alignment_metric


@dataclass(kw_only=True)
class _Sums:
    """What the three HSICs need of the Gram matrices K of x and L of y: elementwise products, row sums."""

    xx: float
    xy: float
    yy: float
    rows_x: Array  # (N,)
    rows_y: Array  # (N,)

    def hsic(self, product: float, a: Array, b: Array, *, unbiased: bool) -> float:
        across = float(a @ b)  # both matrices are symmetric
        return _kernels.hsic(product, (across, across), (float(a.sum()), float(b.sum())), len(a), unbiased=unbiased)


@alignment_metric("cka")
def cka(x: ArrayLike, y: ArrayLike, *, unbiased: bool = False, kernel: str = "linear", sigma: float = 1.0) -> float:
    """Return the CKA of paired features x (N, D1) and y (N, D2).

    unbiased: the HSIC of Song et al. 2012; may be slightly negative. Biased CKA of unrelated features tends to 1 as
    D / N grows: for N < 4 D report the unbiased one. kernel: "linear", or "rbf" with the fixed width `sigma` (on
    features far apart by that measure the kernel is the identity). The official 1e-6 of the denominator is kept as
    it is for rbf; for linear see `_kernels.denominator_eps`. NaN for constant features.
    UserError: N < 2 (unbiased: 4), unequal N, NaN or infinity, unknown kernel, sigma <= 0.
    """
    x, y = paired(x, y, at_least=4 if unbiased else 2)
    if kernel not in ("linear", "rbf"):
        raise unknown("kernel", kernel, ("linear", "rbf"))
    if sigma <= 0.0:
        raise UserError(f"sigma={sigma}: the width of the rbf kernel must be positive")
    if is_constant(x) or is_constant(y):
        return float("nan")
    sums = _sums(_centred(x), _centred(y), unbiased=unbiased, kernel=kernel, sigma=sigma)
    a, b = sums.rows_x, sums.rows_y
    return _kernels.ratio(
        sums.hsic(sums.xy, a, b, unbiased=unbiased),
        sums.hsic(sums.xx, a, a, unbiased=unbiased),
        sums.hsic(sums.yy, b, b, unbiased=unbiased),
        eps=_kernels.OFFICIAL_EPS if kernel == "rbf" else _kernels.denominator_eps(x, y),
    )


def _centred(x: Array) -> Array:
    wide = x.astype(np.float64)
    centred: Array = wide - wide.mean(axis=0)
    return centred


def _sums(x: Array, y: Array, *, unbiased: bool, kernel: str, sigma: float) -> _Sums:
    n, (p, q) = len(x), (x.shape[1], y.shape[1])
    if kernel == "linear" and p * p + p * q + q * q <= n * (p + q):  # the cheaper form by multiplications
        return _feature_sums(x, y, unbiased=unbiased)
    return _gram_sums(x, y, unbiased=unbiased, kernel=kernel, sigma=sigma)


def _feature_sums(x: Array, y: Array, *, unbiased: bool) -> _Sums:
    """Linear kernel through D x D products: sum K * L = |x^T y|^2, and the rows of a centred K sum to zero."""
    xx, xy, yy = (float(np.square(a.T @ b).sum()) for a, b in ((x, x), (x, y), (y, y)))
    if not unbiased:
        return _Sums(xx=xx, xy=xy, yy=yy, rows_x=np.zeros(len(x)), rows_y=np.zeros(len(y)))
    k, m = np.square(x).sum(axis=1), np.square(y).sum(axis=1)  # the diagonals that the unbiased form removes
    return _Sums(xx=xx - float(k @ k), xy=xy - float(k @ m), yy=yy - float(m @ m), rows_x=-k, rows_y=-m)


def _gram_sums(x: Array, y: Array, *, unbiased: bool, kernel: str, sigma: float) -> _Sums:
    """Any kernel through N x N Gram matrices, of which only a block of rows exists at a time."""
    gram = _kernels.linear_gram if kernel == "linear" else partial(_kernels.rbf_gram, sigma=sigma)
    sums = _Sums(xx=0.0, xy=0.0, yy=0.0, rows_x=np.empty(len(x)), rows_y=np.empty(len(y)))
    for rows in _kernels.row_blocks(len(x), len(x)):
        K, L = gram(x, rows), gram(y, rows)  # (block, N)
        if unbiased:
            _kernels.drop_self(K, rows, 0.0)
            _kernels.drop_self(L, rows, 0.0)
        sums.xx += float(np.vdot(K, K))
        sums.xy += float(np.vdot(K, L))
        sums.yy += float(np.vdot(L, L))
        sums.rows_x[rows], sums.rows_y[rows] = K.sum(axis=1), L.sum(axis=1)
    return sums
