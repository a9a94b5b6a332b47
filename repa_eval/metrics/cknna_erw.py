"""CKNNA as LINs-lab/ERW @ adf125d computes it (tools/cknna.py): another number than `cknna`, under a name of its own.

One mask, the pairs common to both neighbour lists, for the numerator AND both denominators; the mask alone makes the
two masked matrices alike, so that unrelated features score high as well. Never plot it on one axis with `cknna`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse

from repa_eval.errors import UserError
from repa_eval.interfaces.metric import alignment_metric
from repa_eval.metrics.cknna import sparse_hsic
from repa_eval.metrics.shared.checks import neighbour_count, undefined
from repa_eval.metrics.shared.kernels import normalise_rows
from repa_eval.metrics.shared.neighbours import neighbours
from repa_eval.metrics.shared.prepared import Prepared, constant, paired, prepare

ERW_EPS = 1e-10  # added under the root


@alignment_metric(
    "cknna_erw",
    definition="ERW's variant: cosines masked by common k nearest neighbours, in numerator and denominators (k=10)",
    range="about 0..1, far above 0 for unrelated features",
    chance=None,
    shift=False,
    meaning="centred kernel nearest-neighbour alignment in ERW's variant",
)
def cknna_erw(x: ArrayLike, y: ArrayLike, *, k: int = 10, unbiased: bool = False) -> float:
    """Return ERW's CKNNA of paired features x (N, D1) and y (N, D2), whose rows are L2-normalised here.

    unbiased: the default of its function; False is that of its command line. Its unbiased form multiplies K and L
    elementwise without the transposition and takes sum(K L^T) as third term. The 1e-10 under the root is absolute:
    where N is large against k it pulls the value down.
    NaN for constant features or a negative number under the root. UserError: k < 2, N <= k, N < 4, unequal N.
    """
    first, second = paired(x, y)
    neighbour_count(k, len(first), least=2)
    if len(first) < 4:
        raise UserError(f"CKNNA needs at least 4 samples; given are {len(first)}")
    nan = constant(first, second)
    if nan is not None:
        return nan
    K, L = _common(_unit(first), _unit(second), k=k)
    xy, xx, yy = (_hsic(a, b, unbiased=unbiased) for a, b in ((K, L), (K, K), (L, L)))
    under = xx * yy + ERW_EPS
    return xy / math.sqrt(under) if under > 0.0 else undefined("the number under the root is negative")


def _unit(side: Prepared) -> Prepared:
    return side.once(
        "unit", lambda: prepare(normalise_rows(side.values), name=side.name, device=side.device)
    )  # keeps its own neighbours


def _common(x: Prepared, y: Prepared, *, k: int) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Return both matrices of cosines at the pairs that are in both neighbour lists, without the diagonal."""
    first, second = neighbours(x, k=k).gram(), neighbours(y, k=k).gram()
    masks = [sparse.csr_matrix((np.ones_like(g.data), g.indices, g.indptr), shape=g.shape) for g in (first, second)]
    return first.multiply(masks[1]).tocsr(), second.multiply(masks[0]).tocsr()


def _hsic(K: sparse.csr_matrix, L: sparse.csr_matrix, *, unbiased: bool) -> float:
    if unbiased:
        return sparse_hsic(K, L.T.tocsr(), unbiased=True)
    return sparse_hsic(K, L, unbiased=False) / float(K.shape[0]) ** 2
