"""CDS: how fast the cosine of two tokens falls with their distance (iREPA, End2End-Diffusion/iREPA @ 99ad4ac)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from repa_eval.errors import UserError
from repa_eval.interfaces.metric import spatial_metric
from repa_eval.metrics.shared.checks import Array, undefined
from repa_eval.metrics.shared.token_grid import Grid, grid_of, manhattan, mean_cosines, mean_over_images, token_array


@spatial_metric(
    "cds",
    definition="- slope of the mean cosine against the Manhattan distance 1..8 of two tokens",
    range="about -1..1, above 0 = the cosine falls with distance; per unit of distance",
    meaning="how fast the similarity of two tokens falls with their distance in the image",
)
def cds(tokens: ArrayLike, *, grid: Grid | None = None, most: int = 8) -> float:
    """Return the mean CDS of the images in tokens (N, T, D).

    The slope is that of least squares through one point per distance 1..`most`, however many pairs are behind it; a
    small grid has fewer distances. grid as in `lds`. NaN where the grid has fewer than two distances.
    UserError: T is not H * W, most < 2, NaN or infinity.
    """
    values = cds_per_image(tokens, grid=grid, most=most)
    return undefined("the grid has fewer than two distances") if np.isnan(values).all() else mean_over_images(values)


def cds_per_image(tokens: ArrayLike, *, grid: Grid | None = None, most: int = 8) -> Array:
    """Return the CDS (N,) of each image; arguments and errors as `cds`."""
    array = token_array(tokens)
    if most < 2:
        raise UserError(f"most={most}: a slope needs at least the distances 1 and 2")
    distance = manhattan(grid_of(array, grid))
    steps = np.arange(1, min(most, int(distance.max())) + 1)
    if len(steps) < 2:
        return np.full(len(array), np.nan)
    means = mean_cosines(array, distance == steps[:, None, None])  # (N, distances)
    apart = steps - steps.mean()
    slope: Array = means @ apart / (apart @ apart)
    return -slope
