"""AuthPct: share of samples that are farther from the training images than these are from each other.

Alaa et al. 2022 (arXiv 2102.08921), as a percentage in dgm-eval. Low values point at copies.
"""

from __future__ import annotations

import math

from numpy.typing import ArrayLike

from repa_eval.interfaces.metric import sample_metric
from repa_eval.metrics.density_coverage import few
from repa_eval.metrics.shared.checks import Array, same_width
from repa_eval.metrics.shared.manifold import EQUAL, nearest, points_of, radii_of


@sample_metric(
    "authpct",
    needs="features",
    gives=("authpct",),
    warns=few,
    definition="percentage of samples farther from their nearest real point than that one from its nearest real point",
    range="0..100, low = copies; real must be the training images",
    better=None,
    meaning="percentage of samples farther from their nearest training image than that is from its own nearest one",
)
def authpct(real: ArrayLike, fake: ArrayLike, *, device: str = "cpu") -> dict[str, float]:
    """Return {"authpct": 0..100} of features real (N, D) and fake (M, D), and its standard error.

    UserError: fewer than 2 real rows, unequal D, NaN or infinity.
    """
    first, second = same_width(real, fake, at_least=1)
    share = authentic(first, second, device=device).mean()
    error = math.sqrt(float(share * (1.0 - share)) / len(second))
    return {"authpct": 100.0 * float(share), "authpct_stderr": 100.0 * error}


def authentic(train: Array, generated: Array, *, device: str = "cpu") -> Array:
    """Return for each row of generated (M, D) whether it is authentic, (M,)."""
    distance, index = nearest(generated, train, device=device)
    points = points_of(train, device=device)
    own = points.unit * radii_of(points, ks=(1,))[:, 0].sqrt().cpu().numpy()  # (N,)
    result: Array = distance[:, 0] > own[index[:, 0]] * (1.0 + EQUAL)
    return result
