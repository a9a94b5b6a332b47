"""One image file to uint8 pixels, and what is refused: a silent conversion would change the numbers.

Grey, palette and bilevel images are converted, which loses nothing; an opaque alpha channel is dropped.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

Array = np.ndarray[Any, Any]
GREY = frozenset({"1", "L", "LA", "La"})
COLOUR = frozenset({"RGB", "P", "PA", "RGBA", "RGBa", "RGBX", "YCbCr"})
MAX_PIXELS = 100_000_000


class Unusable(Exception):  # noqa: N818  (caught where the file's name is known)
    """Why an image cannot be used; `damaged` if the file is broken, else its kind is refused."""

    def __init__(self, reason: str, *, damaged: bool = False) -> None:
        super().__init__(reason)
        self.damaged = damaged


@dataclass(frozen=True)
class Header:
    """What the first bytes of an image say."""

    grey: bool
    width: int
    height: int


def header(data: bytes) -> Header:
    """Return the Header of an encoded image; Unusable for what cannot or must not be read."""
    image = _opened(data)
    return Header(image.mode in GREY, *image.size)


def pixels(data: bytes, *, grey: bool, side: int | None = None) -> Array:
    """Return the pixels uint8 (H, W, 1 or 3) of an encoded image; side: cropped and resized to it."""
    image = _opened(data)
    try:
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        raise Unusable("is not a readable image (damaged or cut off)", damaged=True) from error
    image = _opaque(image).convert("L" if grey else "RGB")
    if side is not None:
        image = centre_crop(image, side)
    return np.atleast_3d(np.asarray(image))


def centre_crop(image: Image.Image, side: int) -> Image.Image:
    """Return the image resized and cropped to side x side as openai/guided-diffusion's center_crop_arr does.

    Halved by box filters while the shorter side is twice as long, then bicubic to `side`, then the middle.
    """
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _opened(data: bytes) -> Image.Image:
    if not data:
        raise Unusable("is not a readable image (it is empty, 0 bytes)", damaged=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused below, in our words
            image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise Unusable(
            f"declares more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels: possible decompression bomb"
        ) from error
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise Unusable("is not a readable image (no known format)", damaged=True) from error
    if image.width * image.height > MAX_PIXELS:
        raise Unusable(f"declares {image.width}x{image.height} pixels: possible decompression bomb")
    if getattr(image, "n_frames", 1) > 1:
        raise Unusable(f"is animated ({getattr(image, 'n_frames', 0)} frames): which one is meant? Save that one alone")
    if image.mode in ("I", "F") or "16" in image.mode or any("16" in str(tile[3]) for tile in image.tile):
        raise Unusable("has more than 8 bits a channel: convert it, as the rounding is for you to choose")
    if image.mode not in GREY | COLOUR:
        raise Unusable(f"is {image.mode}, whose conversion to RGB is not exact: save it as RGB")
    return image


def _opaque(image: Image.Image) -> Image.Image:
    """Return the image without an alpha channel that says nothing; Unusable where it hides something."""
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        alpha = image.convert("RGBA").getchannel("A")
        if np.asarray(alpha).min() < 255:
            raise Unusable("is transparent in places: flatten it onto the background that you mean")
        image.info.pop("transparency", None)
    return image
