"""Checks that every metric makes of its input: arrays of finite numbers, with messages for people."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from repa_eval.errors import UserError

Array = NDArray[Any]


class Undefined(float):
    """NaN that says why: the answer where a metric is not defined. `reason` belongs in the note of the row."""

    reason: str


def undefined(reason: str) -> Undefined:
    """Return the NaN whose `reason` is given."""
    value = Undefined("nan")
    value.reason = reason
    return value


def reason_of(value: float) -> str | None:
    """Return why a metric's value is NaN, None for a value that is a number or comes without a reason."""
    return value.reason if isinstance(value, Undefined) else None


def matrix(name: str, values: ArrayLike, *, at_least: int = 1) -> Array:
    """Return `values` as a float32 or float64 matrix (N, D) of finite numbers.

    float16 becomes float32, integers become float64. UserError: not two axes, fewer than `at_least` rows, no
    column, not real numbers, NaN or infinity.
    """
    array = finite_array(name, values, axes=("samples", "features"))
    if len(array) < at_least:
        raise UserError(f"{name} has shape {array.shape}; needed are at least {at_least} rows and one column")
    return array


def finite_array(name: str, values: ArrayLike, *, axes: tuple[str, ...]) -> Array:
    """Return `values` as float32 or float64 with these axes, each of length 1 at least, and finite numbers only.

    Tensors of torch may be of any kind of float, on any device, and with gradients. UserError: other axes, not real
    numbers, NaN or infinity, with the first row that has it.
    """
    array = as_array(values)
    if array.ndim != len(axes):
        raise UserError(f"{name} has shape {array.shape}; needed are the axes ({', '.join(axes)})")
    if array.dtype.kind not in "fiu":
        raise UserError(f"{name} has dtype {array.dtype}; allowed are float32 and float64")
    if 0 in array.shape:
        raise UserError(f"{name} has shape {array.shape}; of each axis ({', '.join(axes)}) at least one is needed")
    array = array.astype(_working_dtype(array.dtype), copy=False)
    blocks = (array[start : start + 4096] for start in range(0, len(array), 4096))  # a mask of all would be large
    finite = np.concatenate([np.isfinite(block).all(axis=tuple(range(1, array.ndim))) for block in blocks])
    if not finite.all():
        bad = np.flatnonzero(~finite)
        raise UserError(
            f"{name} has NaN or infinity in {len(bad)} of {len(array)} rows, first in row {bad[0]}; remove these rows"
        )
    return array


def as_array(values: Any) -> Array:
    """Return an array of anything that numpy or torch holds: tensors of every kind of float, with gradients."""
    if hasattr(values, "detach"):  # a tensor of torch, which is not imported for it
        values = values.detach().cpu()
        if values.is_floating_point() and values.element_size() < 4:
            values = values.float()  # numpy has no bfloat16
    array: Array = np.asarray(values)
    return array


def same_width(real: ArrayLike, fake: ArrayLike, *, at_least: int) -> tuple[Array, Array]:
    """Return real (N, D) and fake (M, D) checked by `matrix` and in one dtype; UserError where their widths differ."""
    first, second = matrix("real", real, at_least=at_least), matrix("fake", fake, at_least=at_least)
    if first.shape[1] != second.shape[1]:
        raise UserError(
            f"real has {first.shape[1]} features and fake {second.shape[1]}; extract both with the same network"
        )
    dtype = np.result_type(first, second)
    return first.astype(dtype, copy=False), second.astype(dtype, copy=False)


def neighbour_count(k: int, n: int, *, least: int = 1) -> None:
    """Raise UserError unless `least` <= k <= n - 1: a sample has only n - 1 others."""
    if k < least:
        raise UserError(f"k={k}: at least {least} neighbours are needed")
    if n <= k:
        raise UserError(f"k={k} neighbours need more than {k} samples; given are {n}: lower k or add samples")


def is_constant(x: Array) -> bool:
    """Whether all rows of x (N, D) are the same up to the rounding of its dtype: no metric is defined on these."""
    return not varying(x).any()


def varying(x: Array) -> Array:
    """Return which columns (D,) of x (N, D) vary by more than the rounding of their own numbers."""
    result: Array = np.ptp(x, axis=0) > 4.0 * float(np.finfo(x.dtype).eps) * np.abs(x).max(axis=0)
    return result


def _working_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.kind == "f" and dtype.itemsize <= 4:
        return np.dtype(np.float32)
    return np.dtype(np.float64)
