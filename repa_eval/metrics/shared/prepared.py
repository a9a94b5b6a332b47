"""What was computed of one side is kept: a teacher's neighbours serve all layers, timesteps and metrics.

    teacher = prepare(teacher_features)                   # once
    hidden = prepare(layer_features)                      # once a layer
    cknna(hidden, teacher), cka(hidden, teacher), ...     # each computes what no metric before it has computed

Every metric takes arrays as well. A metric that knows nothing of this sees a `Prepared` as the array that it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from repa_eval.errors import UserError
from repa_eval.metrics.shared.checks import Array, Undefined, is_constant, matrix, undefined

T = TypeVar("T")


class Prepared:
    """Checked features (N, D) or tokens (N, T, D) of one side; made by `prepare`, never changed.

    name: what messages call it. device: where neighbours are searched and large products are taken ("cpu", "cuda").
    """

    def __init__(self, values: Array, *, name: str, device: str = "cpu") -> None:
        self.values = values
        self.name = name
        self.device = device
        self._kept: dict[Hashable, Any] = {}

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return what `compute` returned when `key` was asked for first."""
        if key not in self._kept:
            self._kept[key] = compute()
        kept: T = self._kept[key]
        return kept

    def __len__(self) -> int:
        return len(self.values)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(self.values, dtype=dtype, copy=True) if copy else np.asarray(self.values, dtype=dtype)


def prepare(features: ArrayLike | Prepared, *, name: str = "features", device: str = "cpu") -> Prepared:
    """Return features (N, D) checked, with room for what metrics compute of them; what is prepared stays as it is.

    UserError: see `_checks.matrix`.
    """
    if isinstance(features, Prepared):
        return features
    return Prepared(matrix(name, features), name=name, device=device)


def paired(x: ArrayLike | Prepared, y: ArrayLike | Prepared, *, at_least: int = 1) -> tuple[Prepared, Prepared]:
    """Return x (N, D1) and y (N, D2) prepared; UserError where their numbers of rows differ or are too small."""
    first, second = prepare(x, name="x"), prepare(y, name="y")
    for side in (first, second):
        if len(side) < at_least:
            raise UserError(f"{side.name} has {len(side)} rows; this metric needs at least {at_least} samples")
    if len(first) != len(second):
        raise UserError(
            f"{first.name} has {len(first)} rows and {second.name} {len(second)}; row i of both must be the same sample"
        )
    return first, second


def constant(*sides: Prepared) -> Undefined | None:
    """Return NaN with its reason if all rows of a side are the same: no alignment is defined there; else None."""
    for side in sides:
        if side.once("constant", lambda side=side: is_constant(side.values)):  # type: ignore[misc]
            return undefined(f"constant features: all rows of {side.name} are equal")
    return None


def centred(side: Prepared) -> Array:
    """Return the features less their mean (N, D), in float64."""

    def compute() -> Array:
        wide = side.values.astype(np.float64)
        wide -= wide.mean(axis=0)
        return wide

    return side.once("centred", compute)
