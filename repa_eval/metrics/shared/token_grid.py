"""Token grids: cosines of all pairs of tokens of an image, by their Manhattan distance.

For the spatial metrics of iREPA (End2End-Diffusion/iREPA @ 99ad4ac): tokens (N, T, D), T = H * W in row-major order,
every token L2-normalised.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from repa_eval.errors import UserError
from repa_eval.metrics.shared.checks import Array, finite_array
from repa_eval.metrics.shared.kernels import BLOCK_ELEMENTS

Grid = tuple[int, int]


def token_array(tokens: ArrayLike) -> Array:
    """Return tokens (N, T, D) as float32 or float64; UserError: not three axes, nothing in them, NaN or infinity."""
    return finite_array("tokens", tokens, axes=("images", "tokens", "features"))


def grid_of(tokens: Array, grid: Grid | None) -> Grid:
    """Return (H, W) of tokens (N, T, D): `grid` if it fits, else the square of T tokens; UserError if there is none."""
    count = tokens.shape[1]
    if grid is None:
        side = round(count**0.5)
        if side * side != count:
            raise UserError(f"{count} tokens form no square grid: give grid=(rows, columns), without class tokens")
        return side, side
    if grid[0] * grid[1] != count:
        raise UserError(f"grid {grid[0]} x {grid[1]} does not match {count} tokens; leave out class tokens")
    return grid


def manhattan(grid: Grid) -> Array:
    """Return the distances (T, T) of the tokens of an H x W grid, in row-major order."""
    rows, columns = (axis.ravel() for axis in np.indices(grid))
    distance: Array = np.abs(rows[:, None] - rows) + np.abs(columns[:, None] - columns)
    return distance


def cosines(tokens: Array) -> Iterator[tuple[slice, Array]]:
    """Yield images and the cosines (images, T, T) of their tokens (N, T, D), in float64; of a zero token 0."""
    count = tokens.shape[1]
    step = max(1, BLOCK_ELEMENTS // (count * max(count, tokens.shape[2])))
    for start in range(0, len(tokens), step):
        images = slice(start, min(start + step, len(tokens)))
        unit = unit_tokens(tokens[images])
        yield images, unit @ unit.transpose(0, 2, 1)


def unit_tokens(tokens: Array) -> Array:
    """Return tokens (N, T, D) of length 1 in float64; shorter ones than 1e-12 are divided by 1e-12, as torch does."""
    wide = tokens.astype(np.float64)
    unit: Array = wide / np.maximum(np.linalg.norm(wide, axis=2, keepdims=True), 1e-12)
    return unit


def mean_cosines(tokens: Array, groups: Array) -> Array:
    """Return the mean cosine (N, G) of tokens (N, T, D) over each of the sets of pairs `groups` (G, T, T), of 0 and 1.

    NaN for a set without pairs.
    """
    flat = groups.reshape(len(groups), -1).astype(np.float64)
    pairs = flat.sum(axis=1)
    result = np.full((len(tokens), len(groups)), np.nan)
    for images, found in cosines(tokens):
        sums = found.reshape(len(found), -1) @ flat.T
        np.divide(sums, pairs, out=result[images], where=pairs > 0)
    return result


def mean_over_images(values: Array) -> float:
    """Return the mean of the images (N,) that have a value, NaN if none has."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
