"""CKA: centred kernel alignment (Kornblith et al. 2019, arXiv 1905.00414), linear or rbf, biased or unbiased HSIC.

Conventions of minyoungg/platonic-rep @ dcd76ba; the median-scaled width of google's and ckatorch's code. Features are
centred first, which changes no value and saves the digits that a large mean would cost. Everything in float64.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from repa_eval.errors import UserError, unknown
from repa_eval.interfaces.metric import alignment_metric
from repa_eval.metrics.shared import kernels
from repa_eval.metrics.shared.checks import Array
from repa_eval.metrics.shared.gram import Gram
from repa_eval.metrics.shared.hsic_matrix import hsic_matrix, ratios
from repa_eval.metrics.shared.prepared import Prepared, centred, constant, paired, prepare

if TYPE_CHECKING:
    from torch import Tensor

KERNELS = ("linear", "rbf", "rbf_median")
MAX_MEDIAN = 20_000  # samples whose pairwise distances, 8 bytes each, are held for the median: 1.6 GB


@alignment_metric(
    "cka",
    definition="HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) of centred inner products, biased HSIC",
    range="0..1, 1 = same up to rotation and scale; tends to 1 by itself where N < 4 D",
    meaning="centred kernel alignment of hidden states and teacher features",
)
def cka(
    x: ArrayLike,
    y: ArrayLike,
    *,
    unbiased: bool = False,
    kernel: str = "linear",
    sigma: float = 1.0,
    eps: float = 0.0,
) -> float:
    """Return the CKA of paired features x (N, D1) and y (N, D2).

    unbiased: the HSIC of Song et al. 2012; may be slightly negative. Biased CKA of unrelated features tends to 1 as
    D / N grows: for N < 4 D report the unbiased one. kernel: "linear"; "rbf" with the fixed width `sigma` (on features
    far apart by that measure the kernel is the identity); "rbf_median" with the width sigma * sqrt(lower median of ALL
    N^2 squared distances, the zeros of the diagonal among them), which is free of scale.
    eps: added to the denominator. platonic-rep adds 1e-6 (`kernels.OFFICIAL_EPS`), whatever the features are: on rows
    of length 1 that equals its numbers, but it makes the value depend on a scale and a common shift, and decides it
    where rows are nearly equal. Nothing is added here unless asked for, nor in any registered metric of this family.
    Linear: from D x D or N x N products, whichever is smaller. NaN for constant features.
    UserError: N < 2 (unbiased: 4), unequal N, NaN or infinity, unknown kernel, sigma <= 0, eps < 0.
    """
    first, second = paired(x, y, at_least=4 if unbiased else 2)
    if kernel not in KERNELS:
        raise unknown("kernel", kernel, KERNELS)
    if eps < 0.0:
        raise UserError(f"eps={eps}: what is added to the denominator must not be negative")
    if sigma <= 0.0:
        raise UserError(f"sigma={sigma}: the width of the rbf kernel must be positive")
    nan = constant(first, second)
    if nan is not None:
        return nan
    absolute = kernel == "rbf" or eps > 0.0  # the value depends on the units of the features
    gram = functools.partial(_gram, unbiased=unbiased, kernel=kernel, sigma=sigma, absolute=absolute)
    K, L = gram(first), gram(second)
    return kernels.ratio(K.hsic(L), K.own, L.own, eps=eps)


def cka_matrix(xs: Sequence[ArrayLike], ys: Sequence[ArrayLike], *, unbiased: bool = False) -> Array:
    """Return the linear CKA of every layer in xs (N, D_i) with every layer in ys (N, D_j): (len(xs), len(ys)).

    Each layer is centred once, in float64, and one product gives all pairs, in the dtype of the layers: of float32 the
    values are within 1e-5 of those of `cka`, of float64 the same. NaN in the rows and columns of constant layers.
    UserError: as `cka`, no layer at all.
    """
    sides = [[prepare(x, name=f"{word}s[{i}]") for i, x in enumerate(given)] for word, given in (("x", xs), ("y", ys))]
    if not sides[0] or not sides[1]:
        raise UserError(f"cka_matrix needs layers on both sides; given are {len(xs)} and {len(ys)}")
    for side in (*sides[0], *sides[1]):
        paired(sides[0][0], side, at_least=4 if unbiased else 2)
    scaled = [[kernels.scaled_to_one(centred(side)) for side in given] for given in sides]
    wide = any(kernels.has_long_rows(layer) for given in scaled for layer in given)
    layers = (
        [x if wide else x.astype(side.values.dtype, copy=False) for x, side in zip(xs, given, strict=True)]
        for xs, given in zip(scaled, sides, strict=True)
    )
    sums = hsic_matrix(*layers, unbiased=unbiased)
    result = ratios(*sums)
    result[[constant(side) is not None for side in sides[0]]] = np.nan
    result[:, [constant(side) is not None for side in sides[1]]] = np.nan
    return result


def linear_gram(side: Prepared, *, unbiased: bool = False) -> Gram:
    """Return the Gram matrix of centred inner products, up to a power of two, kept with its side."""
    return _gram(side, unbiased=unbiased, kernel="linear", sigma=1.0, absolute=False)


def _gram(side: Prepared, *, unbiased: bool, kernel: str, sigma: float, absolute: bool) -> Gram:
    def compute() -> Gram:
        width = {"linear": None, "rbf": sigma, "rbf_median": sigma}[kernel]
        if kernel == "rbf_median":
            values = _values(side, absolute=absolute)
            width = sigma * float(np.sqrt(side.once(("median", absolute), lambda: _median(side.name, values))))
        return Gram(_tensor(side, absolute=absolute), width=width, unbiased=unbiased)

    return side.once(("gram", unbiased, kernel, sigma, absolute), compute)


def _values(side: Prepared, *, absolute: bool) -> Array:
    """Return the centred features (N, D); unless `absolute`, near 1: no square overflows or vanishes."""
    return centred(side) if absolute else side.once("near 1", lambda: kernels.near_one(centred(side)))


def _tensor(side: Prepared, *, absolute: bool) -> Tensor:
    import torch

    values = _values(side, absolute=absolute)
    return side.once(("tensor", absolute), lambda: torch.from_numpy(values).to(side.device))


def _median(name: str, values: Array) -> float:
    """Return the lower median of all N^2 squared distances of values (N, D): N zeros, then every other one twice."""
    n = len(values)
    if n > MAX_MEDIAN:
        raise UserError(f"{name}: the median distance of {n} samples needs {4e-9 * n * n:.0f} GB; take a subset")
    place = ((n * n - 1) // 2 - n) // 2
    if place < 0:
        return 0.0
    found = np.empty(n * (n - 1) // 2)
    done = 0
    for rows in kernels.row_blocks(n, n):
        block = kernels.squared_distances(values[rows], values)
        upper = block[np.arange(n)[None, :] > np.arange(rows.start, rows.stop)[:, None]]
        found[done : done + len(upper)] = upper
        done += len(upper)
    found.partition(place)
    return float(found[place])
