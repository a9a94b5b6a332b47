"""Realism (Kynkaanniemi et al. 2019, arXiv 1904.06991): how far inside the real manifold samples lie."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from repa_eval.interfaces.metric import sample_metric
from repa_eval.metrics.shared.checks import Array
from repa_eval.metrics.shared.manifold import Points, point_sets, radii_of, row_blocks


@sample_metric(
    "realism",
    needs="features",
    gives=("realism",),
    definition="mean over samples of the largest radius / distance of real k-NN balls (k = 3, the smaller half)",
    range="0 and more, higher is better; a sample of 1 or more lies inside the real manifold",
    better="higher",
    meaning="how deep generated images lie inside the neighbourhoods of real ones, on average",
)
def realism(real: ArrayLike, fake: ArrayLike, *, k: int = 3, device: str = "cpu") -> dict[str, float]:
    """Return {"realism": mean} of features real (N, D) and fake (M, D), and its standard error over the samples."""
    scores = realism_scores(real, fake, k=k, device=device)
    return {"realism": float(scores.mean()), "realism_stderr": float(scores.std()) / math.sqrt(len(scores))}


def realism_scores(real: ArrayLike, fake: ArrayLike, *, k: int = 3, device: str = "cpu") -> Array:
    """Return the realism (M,) of each row of fake (M, D): the largest radius / distance over real points (N, D).

    As in the paper and in dgm-eval: Euclidean, and only real points whose radius is below the median.
    """
    u, v = point_sets(real, fake, device=device)
    reach = radii_of(u, ks=(k,))[:, 0].sqrt()  # as every distance here in the units of the points
    kept = reach < float(np.median(reach.cpu().numpy()))
    small = Points(u.values[kept], u.given[kept.cpu().numpy()], u.unit, u.exact)
    score = np.empty(len(v))
    for rows in row_blocks(len(v), len(small)):
        apart = v.distances(rows, small).double().sqrt_()
        score[rows] = (reach[kept] / apart).amax(dim=1).cpu().numpy()
    return score
