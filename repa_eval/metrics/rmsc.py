"""RMSC: how far the tokens of an image are from their mean (iREPA, End2End-Diffusion/iREPA @ 99ad4ac)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from repa_eval.interfaces.metric import spatial_metric
from repa_eval.metrics.shared.checks import Array
from repa_eval.metrics.shared.token_grid import mean_over_images, token_array, unit_tokens


@spatial_metric(
    "rmsc",
    definition="root mean square distance of the L2-normalised tokens of an image from their mean",
    range="0..1, 0 = all tokens of an image point the same way",
    better=None,
    meaning="how far the tokens of an image spread around their mean",
)
def rmsc(tokens: ArrayLike) -> float:
    """Return the mean RMSC of the images in tokens (N, T, D); the order of the tokens does not matter.

    UserError: not three axes, NaN or infinity.
    """
    return mean_over_images(rmsc_per_image(tokens))


def rmsc_per_image(tokens: ArrayLike) -> Array:
    """Return the RMSC (N,) of each image; errors as `rmsc`."""
    array = token_array(tokens)
    result = np.empty(len(array))
    step = max(1, 2**21 // (array.shape[1] * array.shape[2]))
    for start in range(0, len(array), step):
        unit = unit_tokens(array[start : start + step])
        apart = np.square(unit - unit.mean(axis=1, keepdims=True)).sum(axis=2)  # (images, T)
        result[start : start + step] = np.sqrt(apart.mean(axis=1))
    return result
