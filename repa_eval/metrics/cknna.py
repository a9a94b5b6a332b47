"""CKNNA: centred kernel nearest-neighbour alignment (platonic representation hypothesis, arXiv 2405.07987).

Equal to minyoungg/platonic-rep @ dcd76ba, but in memory O(n k): a matrix masked by neighbour lists has k entries a row,
and the five sums that its HSIC needs are sums over these entries.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse

from repa_eval.errors import UserError
from repa_eval.interfaces.metric import alignment_metric
from repa_eval.metrics.shared import kernels
from repa_eval.metrics.shared.checks import Array, neighbour_count
from repa_eval.metrics.shared.neighbours import Neighbours, neighbours
from repa_eval.metrics.shared.prepared import Prepared, centred, constant, paired, prepare

__all__ = ["Neighbours", "Prepared", "cknna", "cknna_centred_first", "neighbours", "prepare", "sparse_hsic"]


@alignment_metric(
    "cknna",
    definition="HSIC of the Gram matrices masked by common k nearest neighbours, over those masked by their own (k=10)",
    range="about 0..1, 1 = same; unbiased, so slightly below 0 is possible",
    symmetric=False,
    shift=False,
    meaning="centred kernel nearest-neighbour alignment of hidden states and teacher features",
)
def cknna(x: ArrayLike, y: ArrayLike, *, k: int = 10, unbiased: bool = True) -> float:
    """Return the CKNNA of paired features x (N, D1) and y (N, D2).

    K and L are raw inner products (normalise the rows first if cosines are meant), masked by the k nearest
    neighbours of each side for the denominators and by both lists for the numerator; the ratio of their HSICs is
    taken: masked first, centred after. unbiased: no sample is its own neighbour, HSIC of Song et al. 2012; k = N - 1
    is the unbiased CKA. Otherwise a sample is among its own candidates and the HSIC is the biased one.
    The unbiased one is not exactly symmetric, here as in the original: its third term is 1'KL1, and the masked
    matrices do not commute; swapping x and y moves the fourth digit or so. The biased one is symmetric.
    The official 1e-6 of the denominator: see `kernels.common_square`. NaN for constant features, and where the
    HSICs under the root have different signs. UserError: k < 2, N <= k, N < 4, unequal N, NaN or infinity.
    """
    first, second = _checked(x, y, k=k)
    nan = constant(first, second)
    if nan is not None:
        return nan
    a, b = (_masked(side, k=k, unbiased=unbiased) for side in (first, second))
    common_K, common_L = a.gram.multiply(b.pattern).tocsr(), b.gram.multiply(a.pattern).tocsr()
    cross = sparse_hsic(common_K, common_L, unbiased=unbiased)
    return kernels.ratio(cross, a.own, b.own, eps=kernels.OFFICIAL_EPS * a.square * b.square)


def cknna_centred_first(x: ArrayLike, y: ArrayLike, *, k: int = 10) -> float:
    """Return the formula of REPA's appendix read literally: centre the Gram matrices, then mask, then sum.

    sum(M K L) / sqrt(sum(M_K K^2) sum(M_L L^2)) with centred K and L, neighbours by raw inner products, self
    excluded. NOT what platonic-rep computes; 2 to 3.5 % from `cknna` on the golden data. Errors and NaN as `cknna`.
    """
    first, second = _checked(x, y, k=k)
    nan = constant(first, second)
    if nan is not None:
        return nan
    K, L = (_centred_gram(side, k=k) for side in (first, second))
    xy, xx, yy = (float(a.multiply(b).sum()) for a, b in ((K, L), (K, K), (L, L)))
    return kernels.ratio(xy, xx, yy, eps=0.0)


def sparse_hsic(K: sparse.csr_matrix, L: sparse.csr_matrix, *, unbiased: bool) -> float:
    """Return the HSIC of two sparse n x n matrices by `kernels.hsic`; for the unbiased one their diagonals are empty.

    tr(K L) is a sum over the pairs (i, j) of K whose transposed pair (j, i) is in L; 1'KL1 is the product of the
    column sums of K with the row sums of L.
    """
    columns = [np.asarray(side.sum(axis=0)).ravel() for side in (K, L)]
    rows = [np.asarray(side.sum(axis=1)).ravel() for side in (K, L)]
    product = float(K.multiply(L.T).sum())  # L^T: directed neighbour lists make neither matrix symmetric
    across = (float(columns[0] @ rows[1]), float(columns[1] @ rows[0]))
    return kernels.hsic(product, across, (float(rows[0].sum()), float(rows[1].sum())), K.shape[0], unbiased=unbiased)


@dataclass(frozen=True)
class _Masked:
    """What CKNNA needs of one side."""

    gram: sparse.csr_matrix  # masked by the side's own lists
    pattern: sparse.csr_matrix  # the mask
    own: float  # HSIC of `gram` with itself
    square: float  # common squared length of the rows, 0 if there is none


def _masked(side: Prepared, *, k: int, unbiased: bool) -> _Masked:
    def compute() -> _Masked:
        gram = neighbours(side, k=k, with_self=not unbiased).gram()
        pattern = sparse.csr_matrix((np.ones_like(gram.data), gram.indices, gram.indptr), shape=gram.shape)
        square = side.once("common square", lambda: kernels.common_square(side.values))
        return _Masked(gram, pattern, sparse_hsic(gram, gram, unbiased=unbiased), square)

    return side.once(("cknna", k, unbiased), compute)


def _centred_gram(side: Prepared, *, k: int) -> sparse.csr_matrix:
    """Return the inner products of the centred rows at the neighbours by raw inner product."""
    places, values = neighbours(side, k=k).indices, centred(side)
    products: Array = np.empty(places.shape)
    for rows in kernels.row_blocks(len(side), k * values.shape[1]):
        products[rows] = np.einsum("nd,nkd->nk", values[rows], values[places[rows]])
    return Neighbours(places, products).gram()


def _checked(x: ArrayLike, y: ArrayLike, *, k: int) -> tuple[Prepared, Prepared]:
    first, second = paired(x, y)
    neighbour_count(k, len(first), least=2)
    if len(first) < 4:
        raise UserError(f"CKNNA needs at least 4 samples; given are {len(first)}")
    return first, second
