"""CKNNA: centred kernel nearest-neighbour alignment (platonic representation hypothesis, arXiv 2405.07987).

Equal to minyoungg/platonic-rep @ dcd76ba, but in memory O(n k): a matrix masked by neighbour lists has k entries a row,
and the five sums that its HSIC needs are sums over these entries.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse

from repa_eval.errors import UserError
from repa_eval.metrics import _kernels
from repa_eval.metrics._checks import Array, is_constant, neighbour_count, paired
from repa_eval.metrics._registry import alignment_metric


@alignment_metric("cknna", symmetric=False)
def cknna(x: ArrayLike, y: ArrayLike, *, k: int = 10, unbiased: bool = True) -> float:
    """Return the CKNNA of paired features x (N, D1) and y (N, D2).

    K and L are raw inner products (normalise the rows first if cosines are meant), masked by the k nearest
    neighbours of each side for the denominators and by both lists for the numerator; the ratio of their HSICs is
    taken: masked first, centred after. unbiased: no sample is its own neighbour, HSIC of Song et al. 2012; k = N - 1
    is the unbiased CKA. Otherwise a sample is among its own candidates and the HSIC is the biased one.
    The unbiased one is not exactly symmetric, here as in the original: its third term is 1'KL1, and the masked
    matrices do not commute; swapping x and y moves the fourth digit or so. The biased one is symmetric.
    The official 1e-6 of the denominator: see `_kernels.denominator_eps`. NaN for constant features, and where the
    HSICs under the root have different signs. UserError: k < 2, N <= k, N < 4, unequal N, NaN or infinity.
    """
    x, y = _checked(x, y, k=k)
    if is_constant(x) or is_constant(y):
        return float("nan")
    K, L = (_masked_gram(side, side, k=k, with_self=not unbiased) for side in (x, y))
    common_K, common_L = K.multiply(_pattern(L)).tocsr(), L.multiply(_pattern(K)).tocsr()
    return _kernels.ratio(
        _sparse_hsic(common_K, common_L, unbiased=unbiased),
        _sparse_hsic(K, K, unbiased=unbiased),
        _sparse_hsic(L, L, unbiased=unbiased),
        eps=_kernels.denominator_eps(x, y),
    )


def cknna_centred_first(x: ArrayLike, y: ArrayLike, *, k: int = 10) -> float:
    """Return the formula of REPA's appendix read literally: centre the Gram matrices, then mask, then sum.

    sum(M K L) / sqrt(sum(M_K K^2) sum(M_L L^2)) with centred K and L, neighbours by raw inner products, self
    excluded. NOT what platonic-rep computes; 2 to 3.5 % from `cknna` on the golden data. Errors and NaN as `cknna`.
    """
    x, y = _checked(x, y, k=k)
    if is_constant(x) or is_constant(y):
        return float("nan")
    K, L = (_masked_gram(side, side - side.mean(axis=0, dtype=np.float64), k=k, with_self=False) for side in (x, y))
    xy, xx, yy = (float(a.multiply(b).sum()) for a, b in ((K, L), (K, K), (L, L)))
    return _kernels.ratio(xy, xx, yy, eps=0.0)


def _checked(x: ArrayLike, y: ArrayLike, *, k: int) -> tuple[Array, Array]:
    first, second = paired(x, y, at_least=1)
    neighbour_count(k, len(first), least=2)
    if len(first) < 4:
        raise UserError(f"CKNNA needs at least 4 samples; given are {len(first)}")
    return first, second


def _masked_gram(x: Array, values: Array, *, k: int, with_self: bool) -> sparse.csr_matrix:
    """Return the inner products of `values` (N, D), in float64, at the k neighbours by x (N, D) of each row."""
    columns = _kernels.nearest(x, k=k, with_self=with_self)  # (N, k)
    entries = np.empty(columns.shape)
    for rows in _kernels.row_blocks(len(x), k * x.shape[1]):
        block = values[rows].astype(np.float64, copy=False)
        others = values[columns[rows]].astype(np.float64, copy=False)  # (block, k, D)
        entries[rows] = np.einsum("nd,nkd->nk", block, others)
    starts = np.arange(0, columns.size + 1, k)
    return sparse.csr_matrix((entries.ravel(), columns.ravel(), starts), shape=(len(x), len(x)))


def _pattern(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    return sparse.csr_matrix((np.ones_like(matrix.data), matrix.indices, matrix.indptr), shape=matrix.shape)


def _sparse_hsic(K: sparse.csr_matrix, L: sparse.csr_matrix, *, unbiased: bool) -> float:
    columns = [np.asarray(side.sum(axis=0)).ravel() for side in (K, L)]
    rows = [np.asarray(side.sum(axis=1)).ravel() for side in (K, L)]
    product = float(K.multiply(L.T).sum())  # L^T: directed neighbour lists make neither matrix symmetric
    across = (float(columns[0] @ rows[1]), float(columns[1] @ rows[0]))
    return _kernels.hsic(product, across, (float(rows[0].sum()), float(rows[1].sum())), K.shape[0], unbiased=unbiased)
