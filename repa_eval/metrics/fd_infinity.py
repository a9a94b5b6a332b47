"""Frechet distance of infinitely many samples: its line over 1 / N, read at 0 (Chong and Forsyth 2020, 1911.07023).

As in dgm-eval: 15 sizes from min(5000, N / 10) to N, a random subset of each, least squares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from repa_eval.errors import UserError
from repa_eval.interfaces.metric import sample_metric
from repa_eval.metrics.fid import Gaussian, few, gaussian_of
from repa_eval.metrics.shared.checks import Array, matrix
from repa_eval.metrics.shared.moments import Moments, moments

POINTS = 15


def short(n: int, width: int) -> str | None:
    """Return what is to be said of n samples: the smallest subset should not be below the width either."""
    return few(n, width) or (
        f"n={n}: the smallest subsets have fewer samples than the {width} features" if smallest(n) < width else None
    )


@sample_metric(
    "fd_infinity",
    needs="features",
    gives=("fd_infinity",),
    warns=short,
    definition="value at 1 / N = 0 of the line through the Frechet distances of subsets of 15 sizes",
    range="about 0 and more, lower is closer",
    better="lower",
    meaning="Fréchet distance extrapolated to infinitely many samples",
)
def fd_infinity(
    real: ArrayLike | Moments | Gaussian, fake: ArrayLike, *, points: int = POINTS, seed: int = 0
) -> dict[str, float]:
    """Return {"fd_infinity": value} of features real (N, D) and fake (M, D), and the standard error of the line at 0.

    The real side is factored once. UserError: fewer than 4 rows of fake, unequal D, NaN or infinity.
    """
    rows, draw = matrix("fake", fake, at_least=4), np.random.RandomState(seed)
    sizes = sizes_of(len(rows), points)
    return extrapolated(real, rows, [draw.choice(len(rows), int(size), replace=False) for size in sizes])


def smallest(n: int) -> int:
    """Return the size of the smallest subset of n samples."""
    return min(5000, max(n // 10, 2))


def sizes_of(n: int, points: int = POINTS) -> Array:
    """Return the sizes of the subsets of n samples, (points,)."""
    if points < 3:
        raise UserError(f"points={points}: a line and its error need 3 sizes")
    return np.linspace(smallest(n), n, points).astype(np.int64)


def extrapolated(real: ArrayLike | Moments | Gaussian, fake: Array, draws: Sequence[Array]) -> dict[str, float]:
    """Return value and standard error at 1 / N = 0 of the line through the distances of fake[draw] for each draw."""
    reference = real if isinstance(real, Gaussian) else gaussian_of(real)
    seen = [moments(fake[draw]) for draw in draws]
    values = np.array([reference.distance(each.mean, each.covariance) for each in seen])
    x = np.array([1.0 / len(draw) for draw in draws])
    spread = float(np.square(x - x.mean()).sum())
    slope = float((x - x.mean()) @ values) / spread
    intercept = float(values.mean() - slope * x.mean())
    left = values - intercept - slope * x
    variance = float(np.square(left).sum()) / (len(x) - 2)
    stderr = math.sqrt(variance * (1.0 / len(x) + float(x.mean()) ** 2 / spread))
    return {"fd_infinity": intercept, "fd_infinity_stderr": stderr}
