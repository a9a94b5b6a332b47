"""Thin singular value decompositions of centred features, kept with their side: what CCA, SVCCA and PWCCA share."""

from __future__ import annotations

import numpy as np
from scipy import linalg

from repa_eval.errors import UserError
from repa_eval.metrics.shared.checks import Array, varying
from repa_eval.metrics.shared.prepared import Prepared, centred


def thin_svd(side: Prepared) -> tuple[Array, Array]:
    """Return U (N, r) and s (r,), descending, of the centred features, r their numerical rank in their own dtype."""

    def compute() -> tuple[Array, Array]:
        x = centred(side) * varying(side.values)
        basis, small = linalg.qr(x, mode="economic") if len(x) > x.shape[1] else (None, x)
        left, s, _ = linalg.svd(small, full_matrices=False)
        columns = side.values[:, varying(side.values)]  # a constant column is exactly 0 once it is centred
        rounding = float(np.finfo(side.values.dtype).eps) * float(np.abs(columns).max())  # of one entry
        rank = max(1, int((s > 2.0 * rounding * np.sqrt(max(x.shape))).sum()))
        left = left[:, :rank]
        return (left if basis is None else basis @ left), s[:rank]

    return side.once("thin svd", compute)


def kept_directions(s: Array, *, threshold: float, k: int | None) -> int:
    """Return how many of the singular values s SVCCA keeps: k, or the fewest with `threshold` of the sum of squares.

    UserError: threshold outside 0..1, k < 1 or more than there are.
    """
    if k is not None:
        if not 1 <= k <= len(s):
            raise UserError(f"k={k} directions: the features have {len(s)}")
        return k
    if not 0.0 < threshold <= 1.0:
        raise UserError(f"threshold={threshold}: the share of variance lies above 0 and at most at 1")
    squares = np.square(s / s.max())
    share = np.cumsum(squares) / squares.sum()
    return min(int(np.searchsorted(share, threshold * (1.0 - 1e-12))) + 1, len(s))


def correlations(first: Array, second: Array) -> tuple[Array, Array]:
    """Return the canonical correlations (r,), descending, and the directions (N, r) of orthonormal bases (N, .)."""
    left, rho, _ = linalg.svd(first.T @ second, full_matrices=False)
    return np.clip(rho, 0.0, 1.0), first @ left
