"""Images from arrays and tensors: uint8, or floats whose range is said."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from repa_eval.errors import UserError
from repa_eval.interfaces.images import Images

Range = tuple[float, float]
RANGES: tuple[Range, ...] = ((0, 1), (-1, 1))
CHANNELS = (1, 3)


def images(
    array: NDArray[Any] | Tensor,
    labels: ArrayLike | Tensor | None = None,
    *,
    range: Range | None = None,
    channels_last: bool | None = None,
    name: str = "array",
    split: str = "given",
) -> Images:
    """Return images (N, C, H, W) or (N, H, W, C), C being 1 or 3, as a source that every function here takes.

    uint8 is taken as it is. Floats are refused unless range says (0, 1) or (-1, 1), and values outside it are
    refused; they are rounded to the nearest grey level. labels: (N,) class numbers. channels_last: needed where both
    readings of the shape are possible. name, split: what the protocol calls the data.
    """
    pixels = as_uint8(array, range=range, channels_last=channels_last)
    classes = _labels(labels, len(pixels))
    return Images(name, split, pixels, classes, int(classes.max(initial=0)) + 1)


def as_uint8(
    array: NDArray[Any] | Tensor, *, range: Range | None = None, channels_last: bool | None = None
) -> NDArray[np.uint8]:
    """Return images uint8 (N, C, H, W), contiguous; see `images` for what is taken and what is refused."""
    given = array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)
    last = _channels_last(given.shape, channels_last)
    if len(given) == 0:
        raise UserError("0 images are given; at least one is needed")
    pixels = _uint8(given, range)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2) if last else pixels)


def _channels_last(shape: tuple[int, ...], given: bool | None) -> bool:
    """Return whether images of this shape are (N, H, W, C); UserError where it is neither or could be both."""
    text = "x".join(map(str, shape))
    if len(shape) != 4:
        advice = "; grey images need an axis of channels: array[:, None]" if len(shape) == 3 else ""
        raise UserError(f"images of shape {text}: expected (N, C, H, W) or (N, H, W, C){advice}")
    fits = {False: shape[1] in CHANNELS, True: shape[3] in CHANNELS}
    if given is None and all(fits.values()):
        raise UserError(f"images of shape {text} may be (N, C, H, W) or (N, H, W, C): say channels_last=True or False")
    if not (any(fits.values()) if given is None else fits[given]):
        raise UserError(f"images of shape {text} have no axis of 1 or 3 channels where one is expected")
    return fits[True] if given is None else given


def _uint8(array: NDArray[Any], range: Range | None) -> NDArray[np.uint8]:
    if range is not None and tuple(range) not in RANGES:
        raise UserError(f"range {tuple(range)}: choose (0, 1) or (-1, 1)")
    if array.dtype == np.uint8:
        if range is not None:
            raise UserError(f"the images are uint8, whose range is 0..255; leave range={tuple(range)} out")
        return array
    if array.dtype.kind != "f":
        raise UserError(f"images of type {array.dtype}: expected uint8, or floats together with range=")
    if range is None:
        extremes = f"{array.min():.3g}..{array.max():.3g}"
        raise UserError(f"images of type {array.dtype} in {extremes}: say range=(0, 1) or range=(-1, 1), or give uint8")
    low, high = range
    outside = int(np.count_nonzero(~((array >= low) & (array <= high))))
    if outside:
        extremes = f"{array.min():.3g}..{array.max():.3g}"
        raise UserError(f"{outside} values of the images are outside range=({low:g}, {high:g}): they are {extremes}")
    return np.rint((array.astype(np.float64) - low) * (255 / (high - low))).astype(np.uint8)


def _labels(labels: ArrayLike | Tensor | None, count: int) -> NDArray[np.int64]:
    if labels is None:
        return np.zeros(count, dtype=np.int64)
    found = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if found.shape != (count,) or found.dtype.kind not in "iu" or (count and found.min() < 0):
        raise UserError(f"labels are {found.dtype} {found.shape}; expected {count} class numbers, one an image")
    return found.astype(np.int64)
