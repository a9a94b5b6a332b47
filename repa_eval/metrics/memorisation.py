"""C_T: do samples lie closer to the training images than fresh real images do (Meehan et al. 2020, arXiv 2004.05675).

By the rules of dgm-eval: 64 principal components, three cells of k-means on the training images, per cell the z-score
of the Mann-Whitney statistic of the distances to the cell's nearest training image, generated against held-out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import mannwhitneyu

from repa_eval.interfaces.metric import sample_metric
from repa_eval.metrics.density_coverage import few
from repa_eval.metrics.shared.checks import Array, same_width, undefined
from repa_eval.metrics.shared.manifold import nearest

CELLS, COMPONENTS, LEAST = 3, 64, 20


@sample_metric(
    "memorisation",
    needs="features",
    gives=("ct",),
    held_out=True,
    warns=few,
    definition="C_T: z-score of the distances to the nearest training image, samples against held-out real images",
    range="a z-score: well below 0 = copies of training images, well above 0 = far from them",
    better=None,
    meaning="whether samples lie closer to training images than unseen images do: a z-score, well below 0 means copies",
)
def memorisation(real: ArrayLike, fake: ArrayLike, held_out: ArrayLike, *, device: str = "cpu") -> dict[str, float]:
    """Return {"ct": C_T} of training features real (N, D), fake (M, D) and held_out (T, D).

    A z-score: its own standard error is about 1 where nothing is copied. UserError: unequal D, NaN or infinity.
    """
    train, generated = same_width(real, fake, at_least=CELLS)
    train, test = same_width(train, held_out, at_least=1)
    reduced = _reduced(train, test, generated.astype(train.dtype, copy=False))
    return {"ct": ct_score(cell_scores(reduced, _cells(*reduced), device=device))}


def mann_whitney_z(generated: ArrayLike, test: ArrayLike) -> float:
    """Return the z-score of distances generated (n,) against test (m,): (U - (nm/2 - 0.5)) / sqrt(nm (n+m+1) / 12)."""
    a, b = np.ravel(np.asarray(generated)), np.ravel(np.asarray(test))
    n, m = len(a), len(b)
    statistic = float(mannwhitneyu(a, b, alternative="less").statistic)
    return (statistic - (n * m / 2 - 0.5)) / math.sqrt(n * m * (n + m + 1) / 12)


def cell_scores(
    sides: Sequence[Array], cells: Sequence[Array], *, least: int = LEAST, device: str = "cpu"
) -> dict[int, tuple[float, float]]:
    """Return {cell: (z-score, share of the held-out points)} of (train, held-out, generated) and their cells.

    Distances are to the training points of the same cell. A cell counts with MORE than `least` generated points, a
    training and a held-out point.
    """
    found = {}
    for cell in np.unique(cells[0]):
        train, test, generated = (side[own == cell] for side, own in zip(sides, cells, strict=True))
        if len(generated) > least and len(test):
            apart = [nearest(side, train, device=device)[0][:, 0] for side in (generated, test)]
            found[int(cell)] = mann_whitney_z(*apart), len(test) / len(sides[1])
    return found


def ct_score(scores: dict[int, tuple[float, float]]) -> float:
    """Return C_T, the mean of the cells' z-scores weighted by their shares; NaN with its reason without any cell."""
    if not scores:
        return undefined(f"no cell holds more than {LEAST} samples, and a held-out image")
    values, weights = zip(*scores.values(), strict=True)
    return float(np.average(values, weights=weights))


def _reduced(*sides: Array) -> list[Array]:
    """Return train and the others on train's first 64 principal components; as they are up to that width."""
    if sides[0].shape[1] <= COMPONENTS:
        return list(sides)
    from sklearn.decomposition import PCA

    fitted = PCA(min(COMPONENTS, len(sides[0])), svd_solver="covariance_eigh").fit(sides[0].astype(np.float64))
    return [np.asarray(fitted.transform(side.astype(np.float64))) for side in sides]


def _cells(*sides: Array) -> list[Array]:
    from sklearn.cluster import KMeans

    fitted = KMeans(CELLS, n_init=10, random_state=0).fit(sides[0])
    return [np.asarray(fitted.predict(side)) for side in sides]
