"""dgm-eval's approximate sliced Wasserstein distance (Stein et al. 2023, arXiv 2306.04675)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from repa_eval.interfaces.metric import sample_metric
from repa_eval.metrics.shared.checks import same_width


@sample_metric(
    "sliced_wasserstein",
    needs="features",
    gives=("sw",),
    definition="sqrt(|m - m'|^2 / D + (sqrt(tr S / D) - sqrt(tr S' / D))^2): sliced W2 of isotropic Gaussians",
    range="0 and more, lower is better",
    better="lower",
    meaning="distance of means and overall spreads of the features, generated to real",
)
def sliced_wasserstein(real: ArrayLike, fake: ArrayLike) -> dict[str, float]:
    """Return {"sw": distance} of features real (N, D) and fake (M, D), variances with ddof 0."""
    train, generated = same_width(real, fake, at_least=2)
    a, b = generated.astype(np.float64), train.astype(np.float64)
    width = a.shape[1]
    apart = float(np.square(a.mean(axis=0) - b.mean(axis=0)).sum()) / width
    spread = [math.sqrt(float(side.var(axis=0).sum()) / width) for side in (a, b)]
    return {"sw": math.sqrt(apart + (spread[0] - spread[1]) ** 2)}
