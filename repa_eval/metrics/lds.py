"""LDS: local against distant similarity of the tokens of an image (iREPA, End2End-Diffusion/iREPA @ 99ad4ac)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from repa_eval.errors import UserError
from repa_eval.interfaces.metric import spatial_metric
from repa_eval.metrics.shared.checks import Array, undefined
from repa_eval.metrics.shared.token_grid import Grid, grid_of, manhattan, mean_cosines, mean_over_images, token_array


@spatial_metric(
    "lds",
    definition="mean cosine of tokens next to each other - that of tokens at Manhattan distance 6 or more",
    range="-2..2, above 0 = near tokens are more alike",
    meaning="how much more alike neighbouring tokens are than distant ones",
)
def lds(tokens: ArrayLike, *, grid: Grid | None = None, far: int = 6) -> float:
    """Return the mean LDS of the images in tokens (N, T, D).

    grid: (H, W) in row-major order; default a square. far: least distance of the distant pairs; on a 4 x 4 grid the
    default leaves the two diagonals. NaN where the grid has no such pair.
    UserError: T is not H * W, far < 1, NaN or infinity.
    """
    values = lds_per_image(tokens, grid=grid, far=far)
    if np.isnan(values).all():
        return undefined(f"the grid has no two tokens at distance {far}, or none at 1")
    return mean_over_images(values)


def lds_per_image(tokens: ArrayLike, *, grid: Grid | None = None, far: int = 6) -> Array:
    """Return the LDS (N,) of each image; arguments and errors as `lds`."""
    array = token_array(tokens)
    if far < 1:
        raise UserError(f"far={far}: distant tokens are at least 1 apart")
    distance = manhattan(grid_of(array, grid))
    near, distant = mean_cosines(array, np.stack([distance == 1, distance >= far])).T
    difference: Array = near - distant
    return difference
