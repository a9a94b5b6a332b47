"""Improved precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991) by the rule of openai/guided-diffusion.

A set's manifold is the union of balls about its points, each reaching to the k-th nearest other point of the set; a
point on the border is inside (<=). ADM computes the distances in float16 where that overflows nowhere; here every
comparison is that of float64 distances, so its printed figures can differ in the third digit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from repa_eval.interfaces.metric import sample_metric
from repa_eval.metrics.shared.checks import Array
from repa_eval.metrics.shared.manifold import balls_at


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
    better="higher",
    meaning={
        "precision": "share of generated images inside the neighbourhoods of the real ones",
        "recall": "share of real images inside the neighbourhoods of the generated ones",
    },
)
def precision_recall(real: ArrayLike, fake: ArrayLike, *, k: int = 3, device: str = "cpu") -> dict[str, float]:
    """Return {"precision": ..., "recall": ...}, each in 0..1, of features real (N, D) and fake (M, D).

    Precision: share of fake inside the manifold of real; recall: share of real inside that of fake. Memory is that of
    a few blocks of distances beside one copy of the features. device: where the distances are computed.
    UserError: k < 1, N <= k or M <= k, unequal D, NaN or infinity.
    """
    precision, recall = (float(side[0]) for side in precision_recall_at(real, fake, ks=(k,), device=device))
    return {"precision": precision, "recall": recall}


def precision_recall_at(
    real: ArrayLike, fake: ArrayLike, *, ks: Sequence[int], device: str = "cpu"
) -> tuple[Array, Array]:
    """Return precision and recall for several k at the price of one: two arrays (len(ks),). Errors as above."""
    found = balls_at(real, fake, ks=ks, border=True, device=device)
    return np.array([(one.holding > 0).mean() for one in found]), np.array([one.recalled.mean() for one in found])
