"""Mean and covariance from a file: whether they are a mean and a covariance, before a distance is computed of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from repa_eval.data.readers.listing import printable
from repa_eval.errors import UserError
from repa_eval.interfaces.image_source import Array

MAX_WIDTH = 16_384  # features; a covariance of as many takes 2.1 GB
ROUNDING = 1e-4  # of the largest entry or eigenvalue: what a covariance in float32 is off
LOW_PRECISION = {  # the relative error of a rounded entry
    "float16": 2.0**-11,
    "torch.float16": 2.0**-11,
    "torch.bfloat16": 2.0**-8,
    "torch.float8_e4m3fn": 2.0**-4,
    "torch.float8_e5m2": 2.0**-3,
}


class Stored(Protocol):
    """An array in a file, whose shape is known before it is read."""

    shape: tuple[int, ...]
    dtype: Any

    def whole(self) -> Array:
        """Return the array."""


def checked_gaussian(path: Path, mean: Stored, covariance: Stored, names: tuple[str, str]) -> tuple[Array, Array]:
    """Return mean (D,) and covariance (D, D), float64; UserError for what is none.

    A covariance is symmetric and has no negative eigenvalues; what rounding explains is allowed.
    """
    where, shape = printable(path), mean.shape
    if len(shape) != 1 or covariance.shape != (*shape, *shape):
        raise UserError(f"{where}: {names[0]} is {shape} and {names[1]} {covariance.shape}; expected (D,) and (D, D)")
    if not 0 < shape[0] <= MAX_WIDTH:
        raise UserError(f"{where}: {names[0]} has {shape[0]:,} entries; 1 to {MAX_WIDTH:,} are allowed")
    for name, stored in zip(names, (mean, covariance), strict=True):
        if "complex" in str(stored.dtype):
            raise UserError(f"{where}: {name} is {stored.dtype}; expected real numbers")
    mu, sigma = mean.whole().astype(np.float64), covariance.whole().astype(np.float64)
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise UserError(f"{where}: {names[0]} or {names[1]} holds NaN or infinity; make the statistics again")
    reason = _no_covariance(sigma, LOW_PRECISION.get(str(covariance.dtype), 0.0))
    if reason:
        raise UserError(f"{where}: {names[1]} is no covariance: {reason}; make the statistics again")
    return mu, sigma


def _no_covariance(sigma: Array, rounding: float) -> str:
    """Return why a matrix (D, D) is no covariance, "" if it is one. rounding: of its entries, relative."""
    largest = np.abs(sigma).max()
    difference = np.abs(sigma - sigma.T).max()
    if difference > (ROUNDING + 2 * rounding) * largest:
        return f"it is not symmetric (entries and their mirror images differ by up to {difference:.3g})"
    spread = rounding * float(np.linalg.norm(sigma))  # by as much can rounding move an eigenvalue
    if _is_positive(sigma, ROUNDING * max(sigma.diagonal().max(), 0.0) + spread):
        return ""
    eigenvalues = np.linalg.eigvalsh(sigma)
    if eigenvalues[0] < -(ROUNDING * max(eigenvalues[-1], 0.0) + spread):
        return f"it has negative eigenvalues (the lowest is {eigenvalues[0]:.3g}, the highest {eigenvalues[-1]:.3g})"
    return ""


def _is_positive(sigma: Array, shift: float) -> bool:
    """Return whether all eigenvalues of a symmetric matrix are above -shift: much faster than to compute them."""
    try:
        np.linalg.cholesky(sigma + shift * np.eye(len(sigma)))
    except np.linalg.LinAlgError:
        return False
    return True
