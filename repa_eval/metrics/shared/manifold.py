"""Neighbour searches between two sets in row blocks, on any device: radii, balls that hold a point, nearest points.

Distances come from products in the dtype of the features, which is fast and costs digits. Wherever that rounding could
decide (a k-th neighbour, a point on the border of a ball), the pair's distance is computed again in float64 from the
difference itself. Features that lie on a lattice of steps 2^-p (integers, binary attributes, halves) need no second
look: their distances are exact in the first place. Memory is O(N + M) beside blocks of a few MB and one copy of each
set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from repa_eval.metrics.shared.checks import Array, matrix, neighbour_count, same_width

BLOCK = 2**20  # distances at a time: 4 MB in float32, and as much again while they are compared
SPARE = 8  # further candidates for a k-th neighbour, whose distances are computed again in float64
ROUNDING = 32.0  # rounding of |u|^2 + |v|^2 - 2 <u, v>, in units of eps (|u|^2 + |v|^2)
EQUAL = 1e-12  # squared distances closer than this share of themselves are equal: the rounding of float64 sums
STEPS = 12  # the finest lattice looked for has steps of 2^-12


@dataclass(frozen=True)
class Balls:
    """How two sets lie in each other's balls, which reach from a point to its k-th nearest other point of its set.

    holding (M,): balls of real points that hold each fake; covered (N,): whether a fake lies in the ball of each
    real; recalled (N,): whether each real lies in the ball of some fake.
    """

    holding: Array
    covered: Array
    recalled: Array


@dataclass(frozen=True)
class Points:
    """One of two sets as it is searched: moved and scaled with the other one, which changes no comparison.

    values (N, D): on their device, in the dtype of the search. given (N, D): as they came. unit: what a distance of
    `values` is multiplied by to be one of `given`. exact: products of `values` carry no rounding.
    """

    values: Tensor
    given: Array
    unit: float
    exact: bool

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def squares(self) -> Tensor:
        """Squared lengths (N,) of the values, without a second copy in memory."""
        parts = (self.values[start : start + 1024] for start in range(0, len(self), 1024))
        return torch.cat([part.square().sum(dim=1) for part in parts])

    def distances(self, rows: slice, other: Points, *, start: int = 0) -> Tensor:
        """Return the squared distances (B, M) of values[rows] to those of another set from `start` on, by products."""
        apart = torch.addmm(other.squares[start:], self.values[rows], other.values[start:].T, alpha=-2.0)
        return apart.add_(self.squares[rows, None]).clamp_(min=0.0)

    def slack(self, rows: slice, other: Points) -> Tensor:
        """Return how far `distances` may be off (B, M): 0 for exact sets."""
        scale = 0.0 if self.exact else ROUNDING * torch.finfo(self.values.dtype).eps
        return scale * (self.squares[rows, None] + other.squares)

    def pairs(self, i: Tensor, other: Points, j: Tensor) -> Tensor:
        """Return the squared distances (P,), float64, of rows i (P,) to rows j (P,) of another set, by differences."""
        result = torch.empty(len(i), dtype=torch.float64)
        size = max(1, 2**21 // self.given.shape[1])
        for start in range(0, len(i), size):
            mine, theirs = (index[start : start + size].cpu().numpy() for index in (i, j))
            a, b = self.given[mine].astype(np.float64), other.given[theirs].astype(np.float64)
            result[start : start + size] = torch.from_numpy(np.square(a / self.unit - b / self.unit).sum(axis=1))
        return result.to(self.values.device)


def point_sets(real: ArrayLike, fake: ArrayLike, *, device: str = "cpu") -> tuple[Points, Points]:
    """Return both sets ready to be searched; UserError: unequal D, no row, NaN or infinity.

    Both lose the mean of the real one, which changes no distance and saves digits, and are divided by a power of two,
    so that no square overflows or vanishes. Points of a lattice stay on it, and become small integers.
    """
    first, second = same_width(real, fake, at_least=1)
    lattice = _lattice(first, second)
    if lattice is None:
        unit = _power_of_two(max(float(np.abs(side).max()) for side in (first, second)), first.dtype)
        values = [side / side.dtype.type(unit) for side in (first, second)]
        mean = values[0].mean(axis=0, dtype=np.float64).astype(first.dtype)
        for side in values:
            side -= mean
    else:
        unit, values = lattice
    tensors = [torch.from_numpy(side).to(device) for side in values]
    exact = lattice is not None
    return Points(tensors[0], first, unit, exact), Points(tensors[1], second, unit, exact)


def points_of(x: ArrayLike, *, device: str = "cpu") -> Points:
    """Return one set ready to be searched; UserError: NaN or infinity."""
    rows = matrix("x", x)
    return point_sets(rows, rows[:1], device=device)[0]


def radii_of(x: Points, *, ks: Sequence[int]) -> Tensor:
    """Return the squared distances (N, len(ks)), float64, of each row to its k-th nearest other rows, in its units.

    UserError: k < 1, N <= k.
    """
    for k in ks:
        neighbour_count(k, len(x))
    count = min(max(ks) + (0 if x.exact else SPARE), len(x) - 1)
    values = torch.full((len(x), count), torch.inf, dtype=x.values.dtype, device=x.values.device)
    columns = torch.zeros((len(x), count), dtype=torch.int64, device=x.values.device)
    for rows in row_blocks(len(x), len(x)):  # symmetric: each pair is met once, and serves both of its rows
        apart = x.distances(rows, x, start=rows.start)
        apart.diagonal().fill_(torch.inf)
        _keep_least(values[rows], columns[rows], apart, first=rows.start)
        later = slice(rows.stop, len(x))
        _keep_least(values[later], columns[later], apart[:, len(apart) :].T, first=rows.start)
    result = torch.empty((len(x), len(ks)), dtype=torch.float64, device=x.values.device)
    places = [k - 1 for k in ks]
    for rows in row_blocks(len(x), count):
        result[rows] = _refined(x, rows, values[rows], columns[rows], places).sort(dim=1).values[:, places]
    return result


def balls(real: ArrayLike, fake: ArrayLike, *, k: int, border: bool = False, device: str = "cpu") -> Balls:
    """Return the Balls of features real (N, D) and fake (M, D); border: a point on the border is inside.

    UserError: k < 1, N <= k or M <= k, unequal D, NaN or infinity.
    """
    return balls_at(real, fake, ks=(k,), border=border, device=device)[0]


def balls_at(
    real: ArrayLike, fake: ArrayLike, *, ks: Sequence[int], border: bool = False, device: str = "cpu"
) -> list[Balls]:
    """Return the Balls of several k from one search; errors as `balls`."""
    u, v = point_sets(real, fake, device=device)
    reach, reach_fake = radii_of(u, ks=ks), radii_of(v, ks=ks)
    holding = torch.zeros((len(ks), len(v)), dtype=torch.int64)
    covered, recalled = (torch.zeros((len(ks), len(u)), dtype=torch.bool, device=u.values.device) for _ in range(2))
    for rows in row_blocks(len(v), len(u)):
        apart = v.distances(rows, u)
        for i in range(len(ks)):
            inside = _within(v, rows, u, apart, reach[:, i], border=border)
            holding[i, rows] = inside.sum(dim=1).cpu()
            covered[i] |= inside.any(dim=0)
            recalled[i] |= _within(v, rows, u, apart, reach_fake[rows, i, None], border=border).any(dim=0)
    return [Balls(*(part[i].cpu().numpy() for part in (holding, covered, recalled))) for i in range(len(ks))]


def nearest(queries: ArrayLike, points: ArrayLike, *, k: int = 1, device: str = "cpu") -> tuple[Array, Array]:
    """Return distance and index, each (M, k), of the k rows of points (N, D) nearest to each row of queries (M, D).

    Distances are float64; of equally near rows those of the lower index come first.
    """
    v, u = point_sets(points, queries, device=device)
    neighbour_count(k, len(v) + 1)
    distance, index = np.empty((len(u), k)), np.empty((len(u), k), dtype=np.int64)
    for rows in row_blocks(len(u), len(v)):
        apart = u.distances(rows, v)
        last = torch.topk(apart, k, dim=1, largest=False).values[:, -1:]
        close = apart <= last + 2.0 * u.slack(rows, v)  # every row that may be among the k nearest
        i, j = close.nonzero(as_tuple=True)  # in order of the indices
        exact = apart[i, j].double() if u.exact else u.pairs(i + rows.start, v, j)
        table = torch.full(close.shape, torch.inf, dtype=torch.float64, device=apart.device)
        table[i, j] = exact
        for place in range(k):
            least = table.amin(dim=1, keepdim=True)
            chosen = (table <= least * (1.0 + EQUAL)).int().argmax(dim=1, keepdim=True)  # the first of the nearest
            distance[rows, place] = v.unit * least[:, 0].sqrt().cpu().numpy()
            index[rows, place] = chosen[:, 0].cpu().numpy()
            table.scatter_(1, chosen, torch.inf)
    return distance, index


def row_blocks(n: int, width: int) -> Iterator[slice]:
    """Yield slices that cover n rows, each of so few that a (rows, width) block stays near BLOCK."""
    step = max(1, BLOCK // max(width, 1))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def _keep_least(values: Tensor, columns: Tensor, apart: Tensor, *, first: int) -> None:
    """Put into values and columns (B, K), in place, the K least of them and of distances (B, M) from `first` on."""
    if not apart.numel():
        return
    found = torch.topk(apart, min(values.shape[1], apart.shape[1]), dim=1, largest=False)
    together = torch.cat([values, found.values], dim=1)
    least = torch.topk(together, values.shape[1], dim=1, largest=False)
    columns.copy_(torch.cat([columns, found.indices + first], dim=1).gather(1, least.indices))
    values.copy_(least.values)


def _refined(x: Points, rows: slice, values: Tensor, columns: Tensor, places: Sequence[int]) -> Tensor:
    """Return the squared distances (B, K), float64, of x[rows] to the rows in `columns` (B, K), given in order.

    Those that may come at one of `places` once they are sorted are computed again by differences. The others keep their
    rounding, which leaves them on their side of these places.
    """
    result = values.double()
    if x.exact:
        return result
    slack = 2.0 * ROUNDING * torch.finfo(values.dtype).eps * (x.squares[rows, None] + x.squares.max())
    close = torch.stack([(values - values[:, place, None]).abs() <= slack for place in places]).any(dim=0)
    i, j = close.nonzero(as_tuple=True)
    result[i, j] = x.pairs(i + rows.start, x, columns[i, j])
    return result


def _within(v: Points, rows: slice, u: Points, apart: Tensor, limits: Tensor, *, border: bool) -> Tensor:
    """Return whether squared distances (B, N) lie below their limits, or on them where the border counts.

    limits, float64: (N,), one for each row of u, or (B, 1), one for each of v[rows].
    """
    if v.exact:
        return apart <= limits.to(apart.dtype) if border else apart < limits.to(apart.dtype)
    own, other = (u.squares, v.squares[rows].max()) if limits.ndim == 1 else (v.squares[rows, None], u.squares.max())
    slack = ROUNDING * torch.finfo(apart.dtype).eps * (own + other)
    inside = apart < limits.to(apart.dtype) - slack
    i, j = (inside ^ (apart <= limits.to(apart.dtype) + slack)).nonzero(as_tuple=True)  # where rounding may decide
    if len(i):
        wanted = limits[j] if limits.ndim == 1 else limits[i, 0]
        exact = v.pairs(i + rows.start, u, j)
        equal = (exact - wanted).abs() <= EQUAL * wanted
        inside[i, j] = (exact < wanted) & ~equal | (equal & border)
    return inside


def _lattice(first: Array, second: Array) -> tuple[float, list[Array]] | None:
    """Return (step, both sets as integers) if all values are multiples of one step 2^-p; None for other features.

    The integers are moved to the middle of the real set. They are float32 or float64, whichever holds every sum of
    squares exactly; None where neither does.
    """
    for p in range(STEPS + 1):
        scale = float(2**p)
        if all(_whole(side[:64], scale) for side in (first, second)):
            break
    else:
        return None
    if not all(_whole(side[start : start + 4096], scale) for side in (first, second) for start in _starts(side)):
        return None
    shift = np.rint(first.mean(axis=0, dtype=np.float64) * scale)
    largest = max(float(np.abs(side.astype(np.float64) * scale - shift).max()) for side in (first, second))
    bound = 4.0 * first.shape[1] * largest * largest  # of |u|^2 + |v|^2 + 2 |<u, v>|
    if bound > 2.0**53:
        return None
    dtype = np.float32 if bound <= 2.0**24 else np.float64
    return 1.0 / scale, [(side.astype(np.float64) * scale - shift).astype(dtype) for side in (first, second)]


def _whole(part: Array, scale: float) -> bool:
    scaled = part.astype(np.float64) * scale
    return bool((scaled == np.rint(scaled)).all())


def _starts(side: Array) -> range:
    return range(0, len(side), 4096)


def _power_of_two(largest: float, dtype: np.dtype[Any]) -> float:
    """Return the power of two next above a number, as far as the dtype has it; 1 for 0."""
    if largest == 0.0:
        return 1.0
    limits = np.finfo(dtype)
    return float(2.0 ** min(max(np.ceil(np.log2(largest)), limits.minexp), limits.maxexp - 1))
