"""HSIC of all pairs of layers by one product of flattened Gram matrices, or of concatenated features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.linalg import blas

from repa_eval.metrics.shared import kernels
from repa_eval.metrics.shared.checks import Array

Sums = tuple[Array, Array, Array]  # (Lx, Ly), (Lx,), (Ly,)


def hsic_matrix(xs: Sequence[Array], ys: Sequence[Array], *, unbiased: bool) -> Sums:
    """Return the linear HSIC of CENTRED layers xs (N, D_i) and ys (N, D_j): (Lx, Ly), own (Lx,), own (Ly,).

    Unbiased: Song et al. 2012. The rows of a centred Gram matrix sum to 0, those without the diagonal to minus it,
    so that the diagonals are all that the correction needs. Products in the dtype of the layers, sums in float64.
    """
    n = len(xs[0])
    a, b = (np.stack([np.einsum("nd,nd->n", x, x) for x in side]).astype(np.float64) for side in (xs, ys))  # K_ii
    diagonals = a @ b.T, np.square(a).sum(axis=1), np.square(b).sum(axis=1)  # sum of K_ii L_ii, (Lx, Ly), (Lx,), (Ly,)
    products = _without_diagonals(xs, ys, diagonals)
    if not unbiased:
        xy, xx, yy = (product + diagonal for product, diagonal in zip(products, diagonals, strict=True))
        return xy, xx, yy
    traces = a.sum(axis=1), b.sum(axis=1)
    sums = np.outer(*traces), np.square(traces[0]), np.square(traces[1])
    xy, xx, yy = (_song(*terms, n) for terms in zip(products, diagonals, sums, strict=True))
    return xy, xx, yy


def ratios(xy: Array, xx: Array, yy: Array, *, epsilon: float = 0.0) -> Array:
    """Return xy / sqrt(xx yy + epsilon) (Lx, Ly); NaN, without a warning, where there is no such root."""
    under = np.outer(xx, yy) + epsilon
    result: Array = np.full(xy.shape, np.nan)
    np.divide(xy, np.sqrt(np.maximum(under, 0.0)), out=result, where=under > 0.0)
    return result


def _song(product: Array, across: Array, sums: Array, n: int) -> Array:
    """Return the unbiased HSIC of sum(K L) without diagonals, 1'KL1 (which is sum(K_ii L_ii) here) and 1'K1 1'L1."""
    centre = sums / ((n - 1) * (n - 2)) - 2.0 * across / (n - 2)
    result: Array = (product + centre) / (n * (n - 3))
    return result


def _without_diagonals(xs: Sequence[Array], ys: Sequence[Array], diagonals: Sums) -> Sums:
    """Return sum(K_i * L_j), sum(K_i^2), sum(L_j^2) off the diagonal by the form that takes fewer multiplications."""
    n, p, q = len(xs[0]), [x.shape[1] for x in xs], [y.shape[1] for y in ys]
    through_grams = n * (sum(p) + sum(q) + len(xs) * len(ys)) // 2
    through_features = sum(p) * sum(q) + sum(d * d for d in (*p, *q))
    if through_grams < through_features:
        return _by_grams(xs, ys)
    xy, xx, yy = (full - diagonal for full, diagonal in zip(_by_features(xs, ys), diagonals, strict=True))
    return xy, xx, yy


def _by_features(xs: Sequence[Array], ys: Sequence[Array]) -> Sums:
    """sum(K L) = |x^T y|^2, all of them blocks of one product."""
    crossed = np.square(np.concatenate(xs, axis=1).T @ np.concatenate(ys, axis=1), dtype=np.float64)
    starts = [np.cumsum([0, *(side.shape[1] for side in sides)])[:-1] for sides in (xs, ys)]
    xy = np.add.reduceat(np.add.reduceat(crossed, starts[0], axis=0), starts[1], axis=1)
    xx, yy = (np.array([np.square(side.T @ side, dtype=np.float64).sum() for side in sides]) for sides in (xs, ys))
    return xy, xx, yy


def _by_grams(xs: Sequence[Array], ys: Sequence[Array]) -> Sums:
    """Twice the inner products of the flattened triangles below the diagonals, a block of rows at a time."""
    n, count = len(xs[0]), len(xs) + len(ys)
    xy, xx, yy = np.zeros((len(xs), len(ys))), np.zeros(len(xs)), np.zeros(len(ys))
    for rows in kernels.row_blocks(n, n * count // 4):
        grams = _below_diagonal([*xs, *ys], rows)  # together, because one large array costs fewer page faults than two
        own = np.array([2.0 * float(np.vdot(line, line)) for line in grams])
        xy += 2.0 * (grams[: len(xs)] @ grams[len(xs) :].T)
        xx += own[: len(xs)]
        yy += own[len(xs) :]
    return xy, xx, yy


def _below_diagonal(sides: Sequence[Array], rows: slice) -> Array:
    """Return the entries of the Gram matrices' rows that lie below the diagonal, zeros for the others: (L, entries)."""
    height = rows.stop - rows.start
    found = np.zeros((len(sides), height, rows.stop), dtype=np.result_type(*sides))
    syrk = blas.dsyrk if found.dtype == np.float64 else blas.ssyrk
    for gram, x in zip(found, sides, strict=True):
        if rows.start:
            np.matmul(x[rows], x[: rows.start].T, out=gram[:, : rows.start])
            gram[:, rows.start :] = np.tril(syrk(1.0, x[rows].T, trans=1).T, -1)
        else:
            syrk(1.0, x[rows].T, trans=1, c=gram.T, overwrite_c=1)  # one triangle, the lower one seen from here
            np.fill_diagonal(gram, 0.0)
    return found.reshape(len(sides), -1)
