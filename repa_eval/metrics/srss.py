"""SRSS: are tokens of one region more alike than tokens of another? (iREPA, End2End-Diffusion/iREPA @ 99ad4ac)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from repa_eval.errors import UserError
from repa_eval.interfaces.metric import spatial_metric
from repa_eval.metrics.shared.checks import Array, undefined
from repa_eval.metrics.shared.token_grid import Grid, cosines, grid_of, manhattan, mean_over_images, token_array


@spatial_metric(
    "srss",
    definition="foreground tokens: mean cosine to foreground at distance 1 - to background at distance 6 or more",
    range="-2..2, above 0 = the region holds together",
    needs_mask=True,
    meaning="how much more alike foreground tokens are to each other than to the background",
)
def srss(tokens: ArrayLike, masks: ArrayLike, *, grid: Grid | None = None, near: int = 1, far: int = 6) -> float:
    """Return the mean SRSS of the images in tokens (N, T, D) with foreground masks (N, T).

    Anchors are foreground tokens that have both: a foreground token at distance 1..`near` and a background token at
    `far` or more. Images without an anchor do not count; NaN if no image has one.
    UserError: T is not H * W, masks of another shape or not of 0 and 1, NaN or infinity.
    """
    values = srss_per_image(tokens, masks, grid=grid, near=near, far=far)
    if np.isnan(values).all():
        return undefined(f"no image has a foreground token with foreground beside it and background {far} away")
    return mean_over_images(values)


def srss_per_image(
    tokens: ArrayLike, masks: ArrayLike, *, grid: Grid | None = None, near: int = 1, far: int = 6
) -> Array:
    """Return the SRSS (N,) of each image, NaN for one without an anchor; arguments and errors as `srss`."""
    array = token_array(tokens)
    distance = manhattan(grid_of(array, grid))
    inside = _checked(masks, array)
    beside, away = (distance >= 1) & (distance <= near), distance >= far
    result = np.full(len(array), np.nan)
    for images, found in cosines(array):
        region = inside[images]
        own, close = _means(found, region[:, None, :] & beside)
        other, distant = _means(found, ~region[:, None, :] & away)
        anchors = region & close & distant  # (images, T)
        sums = np.where(anchors, own - other, 0.0).sum(axis=1)
        count = anchors.sum(axis=1)
        np.divide(sums, count, out=result[images], where=count > 0)
    return result


def _means(found: Array, pairs: Array) -> tuple[Array, Array]:
    """Return each token's mean cosine (images, T) over its `pairs` (images, T, T), and whether it has any."""
    count = pairs.sum(axis=2)
    return np.where(pairs, found, 0.0).sum(axis=2) / np.maximum(count, 1), count > 0


def _checked(masks: ArrayLike, tokens: Array) -> Array:
    given = np.asarray(masks)
    if given.shape != tokens.shape[:2]:
        raise UserError(f"masks {given.shape} do not match tokens {tokens.shape}; needed is one entry per token")
    if given.dtype != bool and not np.isin(given, (0, 1)).all():
        raise UserError("masks hold other values than 0 and 1: threshold them to foreground and background first")
    return given.astype(bool)
