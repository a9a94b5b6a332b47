"""Neighbour searches between two sets in row blocks, on any device: radii, balls that hold a point, nearest points.

Memory is O(N + M) beside blocks of a few MB and a centred copy of both sets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from repa_eval.metrics.shared.checks import Array, matrix, neighbour_count, same_width

BLOCK = 2**20  # distances at a time: 4 MB in float32, and as much again while they are compared


@dataclass(frozen=True)
class Balls:
    """How two sets lie in each other's balls, which reach from a point to its k-th nearest other point of its set.

    holding (M,): balls of real points that hold each fake; covered (N,): whether a fake lies in the ball of each
    real; recalled (N,): whether each real lies in the ball of some fake.
    """

    holding: Array
    covered: Array
    recalled: Array


def balls(real: ArrayLike, fake: ArrayLike, *, k: int, border: bool = False, device: str = "cpu") -> Balls:
    """Return the Balls of features real (N, D) and fake (M, D); border: a point on the border is inside.

    UserError: k < 1, N <= k or M <= k, unequal D, NaN or infinity.
    """
    u, v = centred(real, fake, device=device)
    reach, reach_fake = radii_of(u, k=k), radii_of(v, k=k)
    inside = torch.le if border else torch.lt
    holding = torch.zeros(len(v), dtype=torch.int64)
    nearest = torch.full((len(u),), torch.inf, dtype=u.dtype, device=u.device)
    recalled = torch.zeros(len(u), dtype=torch.bool, device=u.device)
    squares = squared_lengths(u)
    for rows in row_blocks(len(v), len(u)):
        apart = squared_distances(v[rows], u, squares)  # (block, N)
        holding[rows] = inside(apart, reach).sum(dim=1).cpu()
        recalled |= inside(apart, reach_fake[rows, None]).any(dim=0)
        nearest = torch.minimum(nearest, apart.amin(dim=0))
    return Balls(holding.numpy(), inside(nearest, reach).cpu().numpy(), recalled.cpu().numpy())


def centred(real: ArrayLike, fake: ArrayLike, *, device: str) -> tuple[Tensor, Tensor]:
    """Return both sets less the mean of the real one, which changes no distance and saves digits."""
    first, second = same_width(real, fake, at_least=1)
    mean = first.mean(axis=0, dtype=np.float64).astype(first.dtype)
    return torch.from_numpy(first - mean).to(device), torch.from_numpy(second - mean).to(device)


def squared_distances(u: Tensor, v: Tensor, squares: Tensor) -> Tensor:
    """Return |u_i - v_j|^2 (B, M) of u (B, D) and v (M, D); squares (M,): |v_j|^2."""
    apart = torch.addmm(squares, u, v.T, alpha=-2.0)
    return apart.add_(u.square().sum(dim=1)[:, None]).clamp_(min=0.0)


def squared_lengths(x: Tensor) -> Tensor:
    """Return |x_i|^2 (N,) of x (N, D), without a second x in memory."""
    return torch.cat([x[start : start + 1024].square().sum(dim=1) for start in range(0, len(x), 1024)])


def radii_of(x: Tensor, *, k: int) -> Tensor:
    """Return the squared distance (N,) of each row of x (N, D) to its k-th nearest other row."""
    neighbour_count(k, len(x))
    found, squares = torch.empty(len(x), dtype=x.dtype, device=x.device), squared_lengths(x)
    for rows in row_blocks(len(x), len(x)):
        apart = squared_distances(x[rows], x, squares)
        apart.diagonal(rows.start).fill_(torch.inf)
        found[rows] = torch.topk(apart, k, dim=1, largest=False).values[:, -1]
    return found


def nearest(queries: ArrayLike, points: ArrayLike, *, k: int = 1, device: str = "cpu") -> tuple[Array, Array]:
    """Return distance and index, each (M, k), of the k rows of points (N, D) nearest to each row of queries (M, D)."""
    v, u = centred(points, queries, device=device)
    neighbour_count(k, len(v) + 1)
    squares = squared_lengths(v)
    distance = np.empty((len(u), k), dtype=matrix("points", points).dtype)
    index = np.empty((len(u), k), dtype=np.int64)
    for rows in row_blocks(len(u), len(v)):
        apart = squared_distances(u[rows], v, squares)
        index[rows] = torch.topk(apart, k, dim=1, largest=False).indices.cpu().numpy()
        for place in range(k):  # of the nearest the difference itself, whose digits the product has lost
            other = v[torch.from_numpy(index[rows, place]).to(v.device)]
            distance[rows, place] = (u[rows] - other).square().sum(dim=1).sqrt().cpu().numpy()
    return distance, index


def row_blocks(n: int, width: int) -> Iterator[slice]:
    """Yield slices that cover n rows, each of so few that a (rows, width) block stays near BLOCK."""
    step = max(1, BLOCK // max(width, 1))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))
