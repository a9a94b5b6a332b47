"""Metrics of your own: distance correlation of paired features, and the effective rank of generated features."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from repa_eval.plugins import alignment_metric, sample_metric

Array = NDArray[np.float64]


def centred_distances(x: ArrayLike) -> Array:
    """Return the distances (N, N) between rows of x (N, D), less the means of rows and columns."""
    rows = np.asarray(x, dtype=np.float64)
    squares = np.square(rows).sum(axis=1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares[None, :] - 2 * rows @ rows.T, 0))
    result: Array = distances - distances.mean(axis=0) - distances.mean(axis=1, keepdims=True) + distances.mean()
    return result


@alignment_metric(
    "distance-correlation",
    definition="correlation of doubly centred distances (Szekely et al. 2007)",
    range="0..1, 1 = same distances up to scale",
    meaning="how far distances between images agree",
    chance=None,
)
def distance_correlation(x: ArrayLike, y: ArrayLike) -> float:
    """Return the distance correlation of paired features x (N, D1) and y (N, D2)."""
    a, b = centred_distances(x), centred_distances(y)
    return float(np.sqrt(max((a * b).mean(), 0.0) / np.sqrt((a * a).mean() * (b * b).mean())))


@sample_metric(
    "effective-rank",
    needs="features",
    gives=("effective_rank", "effective_rank_real"),
    definition="exp of the entropy of the covariance's eigenvalues (Roy and Vetterli 2007)",
    range="1..D",
    better={"effective_rank": "higher", "effective_rank_real": "higher"},
    meaning={
        "effective_rank": "how many directions generated features use",
        "effective_rank_real": "how many directions real features use",
    },
)
def effective_rank(real: ArrayLike, fake: ArrayLike) -> dict[str, float]:
    """Return the effective rank of generated features fake (M, D), and of real ones (N, D)."""
    values = []
    for side in (fake, real):
        eigenvalues = np.linalg.eigvalsh(np.cov(np.asarray(side, dtype=np.float64).T)).clip(min=1e-12)
        shares = eigenvalues / eigenvalues.sum()
        values.append(float(np.exp(-(shares * np.log(shares)).sum())))
    return {"effective_rank": values[0], "effective_rank_real": values[1]}
