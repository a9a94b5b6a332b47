"""Improved precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991) by the rule of openai/guided-diffusion.

A set's manifold is the union of balls about its points, each reaching to the k-th nearest other point of the set; a
point on the border is inside (<=). ADM computes the distances in float16 where that overflows nowhere; here they are
in the dtype of the features, so its printed figures can differ in the third digit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from repa_eval.metrics._checks import Array, matrix, neighbour_count, same_width
from repa_eval.metrics._kernels import drop_self, row_blocks, squared_distances
from repa_eval.metrics._manifold import balls
from repa_eval.metrics._registry import sample_metric


def _stderr(real: Array, fake: Array, values: Mapping[str, float]) -> dict[str, float]:
    """Standard errors of the shares: sampling of fake for precision, of real for recall, the other set being given."""
    counts = {"precision": len(fake), "recall": len(real)}
    return {name: math.sqrt(values[name] * (1.0 - values[name]) / n) for name, n in counts.items()}


@sample_metric(
    "precision_recall",
    needs="features",
    gives=("precision", "recall"),
    stderr=_stderr,
    definition="precision: share of samples in the union of real k-NN balls (k = 3, <=); recall: share of real images"
    " in that of the samples' balls",
    range="0..1, higher is better",
)
def precision_recall(real: ArrayLike, fake: ArrayLike, *, k: int = 3, device: str = "cpu") -> dict[str, float]:
    """Return {"precision": ..., "recall": ...}, each in 0..1, of features real (N, D) and fake (M, D).

    Precision: share of fake inside the manifold of real; recall: share of real inside that of fake. Memory is
    O(max(N, M) * block). device: other than cpu, the search is torch's. UserError: k < 1, N <= k or M <= k, unequal D,
    NaN or infinity.
    """
    if device == "cpu":
        precision, recall = (float(side[0]) for side in precision_recall_at(real, fake, ks=(k,)))
    else:
        seen = balls(real, fake, k=k, border=True, device=device)
        precision, recall = float((seen.holding > 0).mean()), float(seen.recalled.mean())
    return {"precision": precision, "recall": recall}


def precision_recall_at(real: ArrayLike, fake: ArrayLike, *, ks: Sequence[int]) -> tuple[Array, Array]:
    """Return precision and recall for several k at the price of one: two arrays (len(ks),). Errors as above."""
    real, fake = _centred(real, fake)
    real_radii, fake_radii = _radii(real, ks=ks), _radii(fake, ks=ks)  # (N, K), (M, K)
    inside_real = np.zeros((len(fake), len(ks)), dtype=bool)
    inside_fake = np.zeros((len(real), len(ks)), dtype=bool)
    for rows in row_blocks(len(fake), len(real)):
        apart = squared_distances(fake[rows], real)  # (block, N)
        for i in range(len(ks)):
            inside_real[rows, i] = (apart <= real_radii[:, i]).any(axis=1)
            inside_fake[:, i] |= (apart <= fake_radii[rows, i, None]).any(axis=0)
    return inside_real.mean(axis=0), inside_fake.mean(axis=0)


def radii(x: ArrayLike, *, ks: Sequence[int] = (3,)) -> Array:
    """Return the SQUARED distance of each row of x (N, D) to its k-th nearest other row, (N, len(ks))."""
    x = matrix("x", x)
    return _radii(x - x.mean(axis=0, dtype=np.float64).astype(x.dtype), ks=ks)


def realism(real: ArrayLike, fake: ArrayLike, *, k: int = 3) -> tuple[Array, Array]:
    """Return ADM's realism score (M,) of each row of fake (M, D), and the index (M,) of its nearest row of real (N, D).

    Score: the largest, over the real points, of radius / (distance + 1e-5), both squared; 1 or more is inside the
    manifold. All real points count (the paper leaves out the half with the larger radii).
    """
    real, fake = _centred(real, fake)
    reach = _radii(real, ks=(k,))[:, 0]
    score, index = np.empty(len(fake), dtype=real.dtype), np.empty(len(fake), dtype=np.int64)
    for rows in row_blocks(len(fake), len(real)):
        apart = squared_distances(fake[rows], real)  # (block, N)
        index[rows] = apart.argmin(axis=1)
        score[rows] = (reach / (apart + 1e-5)).max(axis=1)
    return score, index


def _centred(real: ArrayLike, fake: ArrayLike) -> tuple[Array, Array]:
    """Return both sets less the mean of the real one, which changes no distance and saves digits."""
    first, second = same_width(real, fake, at_least=1)
    mean = first.mean(axis=0, dtype=np.float64).astype(first.dtype)
    return first - mean, second - mean


def _radii(x: Array, *, ks: Sequence[int]) -> Array:
    for k in ks:
        neighbour_count(k, len(x))
    places = [k - 1 for k in ks]
    found = np.empty((len(x), len(ks)), dtype=x.dtype)
    for rows in row_blocks(len(x), len(x)):
        apart = squared_distances(x[rows], x)  # (block, N)
        drop_self(apart, rows, np.inf)
        found[rows] = np.partition(apart, places, axis=1)[:, places]
    return found
