"""The header of an array in numpy's format, read without touching the array."""

from __future__ import annotations

from typing import IO, Any

import numpy as np


def read_npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return (shape, whether the first axis varies fastest, dtype) of the array that begins here.

    ValueError, or whatever numpy raises, for a damaged header, and for elements of 0 bytes: numpy divides by their size
    when it maps a file, which ends the process.
    """
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"npy version {version} is not known")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if min(shape, default=0) < 0 or not dtype.itemsize:
        raise ValueError(f"its shape is {shape} and its type {dtype}")
    return shape, bool(fortran) and len(shape) > 1, dtype
