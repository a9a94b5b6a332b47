"""Improved precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991) by the rule of openai/guided-diffusion.

A set's manifold is the union of balls about its points, each reaching to the k-th nearest other point of the set; a
point on the border is inside (<=). ADM computes the distances in float16 where that overflows nowhere; here they are
in the dtype of the features, so its printed figures can differ in the third digit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from repa_eval.interfaces.metric import sample_metric
from repa_eval.metrics.shared.checks import Array, matrix, neighbour_count, same_width
from repa_eval.metrics.shared.manifold import balls

TILE = 1024  # rows of either side whose distances are held at a time


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

    Precision: share of fake inside the manifold of real; recall: share of real inside that of fake. Memory is that of
    a few tiles of distances beside the features, which are not copied. device: other than cpu, the search is torch's.
    UserError: k < 1, N <= k or M <= k, unequal D, NaN or infinity.
    """
    if device == "cpu":
        precision, recall = (float(side[0]) for side in precision_recall_at(real, fake, ks=(k,)))
    else:
        seen = balls(real, fake, k=k, border=True, device=device)
        precision, recall = float((seen.holding > 0).mean()), float(seen.recalled.mean())
    return {"precision": precision, "recall": recall}


def precision_recall_at(real: ArrayLike, fake: ArrayLike, *, ks: Sequence[int]) -> tuple[Array, Array]:
    """Return precision and recall for several k at the price of one: two arrays (len(ks),). Errors as above."""
    first, second = _both(real, fake)
    real_radii, fake_radii = _radii(first, ks=ks), _radii(second, ks=ks)  # (N, K), (M, K)
    inside_real = np.zeros((len(second), len(ks)), dtype=bool)
    inside_fake = np.zeros((len(first), len(ks)), dtype=bool)
    for rows, others, apart in _tiles(second, first):
        for i in range(len(ks)):
            inside_real[rows, i] |= (apart <= real_radii[others, i]).any(axis=1)
            inside_fake[others, i] |= (apart <= fake_radii[rows, i, None]).any(axis=0)
    return inside_real.mean(axis=0), inside_fake.mean(axis=0)


def radii(x: ArrayLike, *, ks: Sequence[int] = (3,)) -> Array:
    """Return the SQUARED distance of each row of x (N, D) to its k-th nearest other row, (N, len(ks))."""
    rows = matrix("x", x)
    return _radii(_Centred(rows, rows.mean(axis=0, dtype=np.float64)), ks=ks)


def realism(real: ArrayLike, fake: ArrayLike, *, k: int = 3) -> tuple[Array, Array]:
    """Return ADM's realism score (M,) of each row of fake (M, D), and the index (M,) of its nearest row of real (N, D).

    Score: the largest, over the real points, of radius / (distance + 1e-5), both squared; 1 or more is inside the
    manifold. All real points count (the paper leaves out the half with the larger radii).
    """
    first, second = _both(real, fake)
    reach = _radii(first, ks=(k,))[:, 0]
    score = np.zeros(len(second), dtype=first.x.dtype)
    closest, index = np.full(len(second), np.inf, dtype=first.x.dtype), np.zeros(len(second), dtype=np.int64)
    for rows, others, apart in _tiles(second, first):
        near = apart.argmin(axis=1)
        found = apart[np.arange(len(apart)), near]
        closer = found < closest[rows]
        index[rows] = np.where(closer, near + others.start, index[rows])
        closest[rows] = np.where(closer, found, closest[rows])
        score[rows] = np.maximum(score[rows], (reach[others] / (apart + 1e-5)).max(axis=1))
    return score, index


class _Centred:
    """Rows x (N, D) less a mean (D,), a block at a time: the mean costs digits, and a copy of all rows memory."""

    def __init__(self, x: Array, mean: Array) -> None:
        self.x, self.mean = x, mean.astype(x.dtype)
        blocks = (self.part(rows) for rows in _sides(len(x)))
        self.squares = np.concatenate([np.einsum("nd,nd->n", block, block) for block in blocks])  # (N,)

    def __len__(self) -> int:
        return len(self.x)

    def part(self, rows: slice) -> Array:
        block: Array = self.x[rows] - self.mean
        return block


def _both(real: ArrayLike, fake: ArrayLike) -> tuple[_Centred, _Centred]:
    """Return both sets less the mean of the real one, which changes no distance and saves digits."""
    first, second = same_width(real, fake, at_least=1)
    mean = first.mean(axis=0, dtype=np.float64)
    return _Centred(first, mean), _Centred(second, mean)


def _radii(x: _Centred, *, ks: Sequence[int]) -> Array:
    for k in ks:
        neighbour_count(k, len(x))
    nearest = np.full((len(x), max(ks)), np.inf, dtype=x.x.dtype)  # so far, in no order
    for rows, others, apart in _tiles(x, x, upper=True):  # symmetric: each pair is met once
        if rows == others:
            np.fill_diagonal(apart, np.inf)
        else:
            nearest[others] = _smallest(nearest[others], apart.T)
        nearest[rows] = _smallest(nearest[rows], apart)
    nearest.sort(axis=1)
    return nearest[:, [k - 1 for k in ks]]


def _smallest(known: Array, more: Array) -> Array:
    """Return the smallest of each row of known (B, K) and more (B, M) together, (B, K)."""
    k = known.shape[1]
    best = np.partition(more, k - 1, axis=1)[:, :k] if more.shape[1] > k else more
    return np.partition(np.concatenate([known, best], axis=1), k - 1, axis=1)[:, :k]


def _tiles(u: _Centred, v: _Centred, *, upper: bool = False) -> Iterator[tuple[slice, slice, Array]]:
    """Yield (rows of u, rows of v, their squared distances), TILE x TILE at a time; upper: those with v from u on."""
    for rows in _sides(len(u)):
        block = u.part(rows)
        for others in _sides(len(v), rows.start if upper else 0):
            apart = block @ (block if upper and others == rows else v.part(others)).T
            apart *= -2.0
            apart += u.squares[rows, None]
            apart += v.squares[others]
            yield rows, others, np.maximum(apart, 0.0, out=apart)


def _sides(n: int, start: int = 0) -> Iterator[slice]:
    for first in range(start, n, TILE):
        yield slice(first, min(first + TILE, n))
