"""Images joined into one PNG, in a row or in several."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from repa_eval.sampling.sample_files import png

Array = np.ndarray[Any, Any]
GAP, FRAME = 1, 96  # pixels between pictures, and their grey
LARGEST = 96  # pixels of the side of a picture: a report has room for few larger ones


def side_by_side(images: Array) -> bytes:
    """Return a PNG with images uint8 (N, C, H, W) in a row."""
    return png(np.concatenate(list(framed(images)), axis=-1))


def in_rows(images: Array) -> bytes:
    """Return a PNG with images uint8 (R, K, C, H, W) in R rows."""
    return png(np.concatenate([np.concatenate(list(framed(row)), axis=-1) for row in images], axis=-2))


def reduced(images: Array) -> Array:
    """Return images uint8 (N, C, H, W) in at most LARGEST pixels a side, reduced by the means of areas."""
    side = max(images.shape[-2:])
    if side <= LARGEST:
        return images
    size = [max(1, round(length * LARGEST / side)) for length in images.shape[-2:]]
    small = F.interpolate(torch.from_numpy(images).float(), size=size, mode="area")
    result: Array = small.round().to(torch.uint8).numpy()
    return result


def framed(images: Array) -> Array:
    """Return images (..., C, H, W) with a grey frame."""
    return np.pad(images, ((0, 0), (0, 0), (GAP, GAP), (GAP, GAP)), constant_values=FRAME)
