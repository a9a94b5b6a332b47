"""Images joined into one PNG, in a row or in several."""

from __future__ import annotations

from typing import Any

import numpy as np

from repa_eval.sampling.sample_files import png

Array = np.ndarray[Any, Any]
GAP, FRAME = 1, 96  # pixels between pictures, and their grey


def side_by_side(images: Array) -> bytes:
    """Return a PNG with images uint8 (N, C, H, W) in a row."""
    return png(np.concatenate(list(framed(images)), axis=-1))


def in_rows(images: Array) -> bytes:
    """Return a PNG with images uint8 (R, K, C, H, W) in R rows."""
    return png(np.concatenate([np.concatenate(list(framed(row)), axis=-1) for row in images], axis=-2))


def framed(images: Array) -> Array:
    """Return images (..., C, H, W) with a grey frame."""
    return np.pad(images, ((0, 0), (0, 0), (GAP, GAP), (GAP, GAP)), constant_values=FRAME)
