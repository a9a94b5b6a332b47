"""RSA (Kriegeskorte et al. 2008): rank correlation of the two sides' dissimilarities of all pairs of samples."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from repa_eval.errors import UserError, unknown
from repa_eval.interfaces.metric import alignment_metric
from repa_eval.metrics.shared import kernels
from repa_eval.metrics.shared.checks import Array, undefined
from repa_eval.metrics.shared.prepared import Prepared, centred, constant, paired

DISSIMILARITIES = ("correlation", "euclidean")
ROUNDING = 16.0  # of a product of two rows, in units of eps sqrt(D): dissimilarities closer than that are equal
MAX_SAMPLES = 20_000  # N^2 / 2 pairs are sorted: 32 bytes each at the most, 6.4 GB


@alignment_metric(
    "rsa",
    definition="Spearman correlation of 1 - Pearson(row i, row j) over all pairs of samples",
    range="-1..1, 1 = same order of dissimilarities, 0 = chance",
    rotation=False,
    shift=False,
    meaning="rank correlation of the dissimilarities between images in hidden states and in teacher features",
)
def rsa(x: ArrayLike, y: ArrayLike, *, dissimilarity: str = "correlation") -> float:
    """Return the RSA of paired features x (N, D1) and y (N, D2).

    dissimilarity: "correlation", 1 - Pearson between rows, which depends on the basis of the features; or "euclidean",
    which a rotation or a shift of all rows leaves as it is. Memory O(N^2), time O(N^2 log N).
    NaN for constant features and where all dissimilarities of a side are equal.
    UserError: N < 3, N > 20,000, unequal N, NaN or infinity, unknown dissimilarity.
    """
    first, second = paired(x, y, at_least=3)
    if dissimilarity not in DISSIMILARITIES:
        raise unknown("dissimilarity", dissimilarity, DISSIMILARITIES)
    if len(first) > MAX_SAMPLES:
        raise UserError(
            f"RSA of {len(first)} samples would sort {len(first) ** 2 // 2} pairs; take {MAX_SAMPLES} or fewer"
        )
    nan = constant(first, second)
    if nan is not None:
        return nan
    a, b = _ranks(first, dissimilarity), _ranks(second, dissimilarity)
    scale = float(np.sqrt(np.vdot(a, a) * np.vdot(b, b)))
    return float(np.vdot(a, b)) / scale if scale > 0.0 else undefined("all dissimilarities of a side are equal")


def _ranks(side: Prepared, dissimilarity: str) -> Array:
    """Return the centred ranks of the upper triangle of the dissimilarities, equal ones sharing their mean rank."""

    def compute() -> Array:
        if dissimilarity == "correlation":
            rows = side.values.astype(np.float64)
            values = kernels.normalise_rows(rows - rows.mean(axis=1, keepdims=True))
        else:
            values = centred(side)
        upper, rounding = _upper(values, products=dissimilarity == "correlation")
        ranks = _ranked(upper, rounding)
        ranks -= ranks.mean()
        return ranks

    return side.once(("ranks", dissimilarity), compute)


def _upper(values: Array, *, products: bool) -> tuple[Array, float]:
    """Return the dissimilarities of all pairs i < j, and the rounding within which two of them are equal.

    products: 1 - <u, v> of rows of length 1, or 0; else |u - v|^2, which is ordered as |u - v|.
    """
    n = len(values)
    found = np.empty(n * (n - 1) // 2)
    done = 0
    for rows in kernels.row_blocks(n, n):
        block = 1.0 - values[rows] @ values.T if products else kernels.squared_distances(values[rows], values)
        for i, line in zip(range(rows.start, rows.stop), block, strict=True):
            found[done : done + n - i - 1] = line[i + 1 :]
            done += n - i - 1
    largest = 1.0 if products else 4.0 * float(np.einsum("nd,nd->n", values, values).max())
    return found, ROUNDING * values.shape[1] ** 0.5 * float(np.finfo(np.float64).eps) * largest


def _ranked(values: Array, rounding: float) -> Array:
    """Return the ranks (P,) of values (P,); those that differ from the next smaller one by rounding share a mean."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.concatenate([[True], np.diff(ordered) > rounding])
    del ordered
    starts = np.append(np.flatnonzero(first), len(values))
    mean = (starts[:-1] + starts[1:] - 1) / 2.0  # of the places that equal values take
    ranks = np.empty(len(values))
    ranks[order] = np.repeat(mean, np.diff(starts))
    return ranks
