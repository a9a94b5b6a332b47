"""MiFID: the Frechet distance divided by how near samples lie to training images (Bai et al. 2021, 2106.03062).

By the rule of torchmetrics: d = mean over samples of the least 1 - |cos| to a training image, 1 where that is 0.1 or
more; the value is FD / d.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from repa_eval.errors import UserError
from repa_eval.interfaces.metric import sample_metric
from repa_eval.metrics.fid import fd, few
from repa_eval.metrics.shared.checks import same_width
from repa_eval.metrics.shared.kernels import normalise_rows, row_blocks

THRESHOLD, EPS = 0.1, 1e-14


@sample_metric(
    "mifid",
    needs="features",
    gives=("mifid",),
    warns=few,
    definition="Frechet distance over min(d, 1 from 0.1 on), d the mean least 1 - |cos| of a sample to a real image",
    range="0 and more, lower is closer; above the Frechet distance = copies",
    better="lower",
    meaning="Fréchet distance, divided by a penalty for samples that copy training images",
)
def mifid(real: ArrayLike, fake: ArrayLike) -> dict[str, float]:
    """Return {"mifid": value} of features real (N, D), the training images, and fake (M, D)."""
    first, second = same_width(real, fake, at_least=2)
    return {"mifid": fd(first, second)["fd"] / (penalty(cosine_distance(first, second)) + EPS)}


def cosine_distance(train: ArrayLike, generated: ArrayLike) -> float:
    """Return the mean over rows of generated (M, D) of the least 1 - |cos| to a row of train (N, D), in float64.

    Rows of zeros have no direction and are left out, as torchmetrics does. UserError: a side has no other rows.
    """
    sides = same_width(train, generated, at_least=1)
    kept = [side[side.any(axis=1)].astype(np.float64) for side in sides]
    for word, side in zip(("real", "fake"), kept, strict=True):
        if not len(side):
            raise UserError(f"all features of {word} are 0: they have no direction, and MiFID is not defined")
    first, second = (normalise_rows(side) for side in kept)
    least = np.empty(len(second))
    for rows in row_blocks(len(second), len(first)):
        least[rows] = 1.0 - np.abs(second[rows] @ first.T).max(axis=1)
    return float(np.maximum(least, 0.0).mean())  # the cosine of a copy may be rounded to just above 1


def penalty(distance: float) -> float:
    """Return the divisor that a cosine distance makes: itself below 0.1, else 1."""
    return distance if distance < THRESHOLD else 1.0
