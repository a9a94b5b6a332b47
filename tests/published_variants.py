"""Published numbers that no command gives, by the parts of the metrics that it does give.

Golden cases hold them because the same packages print them: they tell that the parts are right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import linalg

from repa_eval.errors import UserError
from repa_eval.metrics import inception_score, procrustes, pwcca, vendi
from repa_eval.metrics.shared.cca import correlations, thin_svd
from repa_eval.metrics.shared.checks import Array, matrix
from repa_eval.metrics.shared.kernels import hsic, normalise_rows
from repa_eval.metrics.shared.manifold import point_sets, points_of, radii_of, row_blocks
from repa_eval.metrics.shared.prepared import Prepared, centred, paired


def hsic_biased(K: Array, L: Array) -> float:
    """Return tr(K H L H) of two n x n matrices, not divided by (n - 1)^2."""
    return dense_hsic(K, L, unbiased=False)


def hsic_unbiased(K: Array, L: Array) -> float:
    """Return the unbiased HSIC of two n x n matrices, n >= 4 (Song et al. 2012, eq. 5); their diagonals are ignored.

    The elementwise term is sum(K * L^T): for matrices masked by directed neighbour lists sum(K * L) is another number.
    """
    off = 1.0 - np.eye(len(K))
    return dense_hsic(K * off, L * off, unbiased=True)


def dense_hsic(K: Array, L: Array, *, unbiased: bool) -> float:
    K, L = K.astype(np.float64, copy=False), L.astype(np.float64, copy=False)
    across = (float(K.sum(axis=0) @ L.sum(axis=1)), float(L.sum(axis=0) @ K.sum(axis=1)))
    product = float(np.einsum("ij,ji->", K, L))
    return hsic(product, across, (float(K.sum()), float(L.sum())), len(K), unbiased=unbiased)


def cca_correlations(x: ArrayLike, y: ArrayLike) -> Array:
    """Return all canonical correlations of x (N, D1) and y (N, D2), descending; UserError as `svcca`."""
    first, second = paired(x, y, at_least=2)
    return correlations(thin_svd(first)[0], thin_svd(second)[0])[0]


def pwcca_google(x: ArrayLike, y: ArrayLike) -> float:
    """Return what google/svcca @ 1f3fbf1 computes for x (N, D1), y (N, D2), D1 <= D2: another number than `pwcca`.

    Its directions are D = (x - m) U + m with U the left singular vectors of Sx^-1/2 Sxy Sy^-1/2: the whitening is
    missing and the means are added back. h_i are the columns of Q in D = QR, the x_j of the weights are not centred.
    """
    first, second = paired(x, y, at_least=2)
    a, b = centred(first), centred(second)
    left, rho, _ = linalg.svd(inverse_root(a.T @ a) @ (a.T @ b) @ inverse_root(b.T @ b), full_matrices=False)
    raw = first.values.astype(np.float64)
    variates, _ = linalg.qr(a @ left + raw.mean(axis=0), mode="economic")
    return pwcca.weighted(rho, variates, raw)


def inverse_root(square: Array) -> Array:
    values, vectors = linalg.eigh(square)
    root: Array = (vectors / np.sqrt(values)) @ vectors.T
    return root


def procrustes_distance(x: ArrayLike, y: ArrayLike, *, centre: bool = True, normalise: bool = True) -> float:
    """Return min over rotations Q of |x Q - y|_F = sqrt(|x|^2 + |y|^2 - 2 |x^T y|_*), the narrower side padded.

    mklabunde/resi's names: neither centred nor normalised, "orthogonal Procrustes"; centred, "size and shape".
    """
    a, b = sides(*paired(x, y, at_least=2), centre=centre)
    if normalise:
        a, b = a / linalg.norm(a), b / linalg.norm(b)
    return math.sqrt(max(float(np.vdot(a, a) + np.vdot(b, b)) - 2.0 * procrustes.nuclear_norm(a, b), 0.0))


def angular_distance(x: ArrayLike, y: ArrayLike) -> float:
    """Return arccos of `procrustes`, in 0..pi/2: a metric in the sense of mathematics (Williams et al. 2021)."""
    return math.acos(procrustes.procrustes(x, y))


def aligned_cosine(x: ArrayLike, y: ArrayLike) -> float:
    """Return the mean cosine of the rows of y with those of x rotated onto y; neither centred nor normalised."""
    a, b = sides(*paired(x, y, at_least=2), centre=False)
    width = max(a.shape[1], b.shape[1])
    a, b = (np.pad(side, ((0, 0), (0, width - side.shape[1]))) for side in (a, b))
    left, _, right = linalg.svd(a.T @ b)
    turned = a @ (left @ right)
    lengths = linalg.norm(turned, axis=1) * linalg.norm(b, axis=1)
    return float((np.einsum("nd,nd->n", turned, b) / np.maximum(lengths, 1e-300)).mean())


def sides(first: Prepared, second: Prepared, *, centre: bool) -> tuple[Array, Array]:
    if centre:
        return centred(first), centred(second)
    return first.values.astype(np.float64), second.values.astype(np.float64)


def inception_score_dgm(logits: ArrayLike, *, splits: int = 10) -> tuple[float, float]:
    """Return mean and population standard deviation over the splits of logits (N, K), as layer6ai-labs/dgm-eval does.

    Order of RandomState(2020); each split has N // splits samples, the rest is dropped.
    """
    logits = inception_score.ordered(logits, splits=splits, shuffle=True)
    size = len(logits) // splits
    return inception_score.over_splits(logits, [i * size for i in range(splits + 1)])


def radii(x: ArrayLike, *, ks: Sequence[int] = (3,)) -> Array:
    """Return the SQUARED distance of each row of x (N, D) to its k-th nearest other row, (N, len(ks)), float64."""
    points = points_of(x)
    squares: Array = points.unit**2 * radii_of(points, ks=ks).numpy()
    return squares


def realism(real: ArrayLike, fake: ArrayLike, *, k: int = 3) -> tuple[Array, Array]:
    """Return ADM's realism score (M,) of each row of fake (M, D), and the index (M,) of its nearest row of real (N, D).

    Score: the largest, over the real points, of radius / (distance + 1e-5), both squared; 1 or more is inside the
    manifold. All real points count (the paper leaves out the half with the larger radii).
    """
    u, v = point_sets(real, fake)
    reach = u.unit**2 * radii_of(u, ks=(k,))[:, 0]
    score, index = np.empty(len(v)), np.empty(len(v), dtype=np.int64)
    for rows in row_blocks(len(v), len(u)):
        apart = v.distances(rows, u).double().mul_(u.unit**2)
        index[rows] = apart.argmin(dim=1).numpy()
        score[rows] = (reach / apart.add_(1e-5)).amax(dim=1).numpy()
    return score, index


def vendi_polynomial(features: ArrayLike, *, q: float = 1.0) -> float:
    """Return dgm-eval's variant with the kernel (x.y / D + 1)^3 of rows of length 1, for comparison only.

    Its diagonal is not 1, so that it counts nothing; it needs the N x N matrix.
    """
    unit = normalise_rows(matrix("features", features).astype(np.float64))
    return vendi.order_score(linalg.eigvalsh((unit @ unit.T / unit.shape[1] + 1.0) ** 3 / len(unit)), q)


def vendi_per_class(features: ArrayLike, labels: ArrayLike, *, q: float = 1.0) -> dict[int, float]:
    """Return the Vendi score of the samples of each label; dgm-eval reports their mean."""
    rows, classes = matrix("features", features), np.asarray(labels)
    if classes.shape != (len(rows),):
        raise UserError(f"labels have shape {classes.shape}; needed is ({len(rows)},)")
    return {int(label): vendi.vendi_score(rows[classes == label], q=q) for label in np.unique(classes)}
