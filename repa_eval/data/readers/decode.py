"""One image file to uint8 pixels, and what is refused: a silent conversion would change the numbers.

Grey, palette and bilevel images are converted, which loses nothing; an opaque alpha channel is dropped. The format is
found by the content, never by the name, and only formats that Pillow itself decodes are tried.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

Array = np.ndarray[Any, Any]
GREY = frozenset({"1", "L", "LA", "La"})
COLOUR = frozenset({"RGB", "P", "PA", "RGBA", "RGBa", "RGBX", "YCbCr"})
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF")  # not EPS, for which Pillow starts a program
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
ASIDE = frozenset({b"iCCP", b"iTXt", b"tEXt", b"zTXt", b"eXIf"})  # chunks of a PNG that say nothing of its pixels
TILE_WIDTH, TILE_LENGTH = 322, 323  # tags of a TIFF
MAX_PIXELS = 100_000_000
SMALL, MAX_RATIO = 1 << 25, 500  # bytes of pixels; these to encoded ones. A blank JPEG reaches 300, a photograph 100
MAX_BYTES = 512 << 20  # of an encoded image: MAX_PIXELS with four channels, not compressed at all, take 400 MB


class Unusable(Exception):  # noqa: N818  (caught where the file's name is known)
    """Why an image cannot be used; `damaged` if the file is broken, else its kind is refused."""

    def __init__(self, reason: str, *, damaged: bool = False) -> None:
        super().__init__(reason)
        self.damaged = damaged

    def alone(self) -> Unusable:
        """Return the same without its traceback, which holds the bytes of the file."""
        return Unusable(str(self), damaged=self.damaged)


@dataclass(frozen=True)
class Header:
    """What the first bytes of an image say."""

    grey: bool
    width: int
    height: int


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Pillow's warnings (of large images, which are refused here, and of odd metadata) off the terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def header(data: bytes, size: int | None = None) -> Header:
    """Return the Header of an encoded image; Unusable for what cannot or must not be read.

    size: the bytes of the whole image where `data` is the beginning of it, in which a PNG or JPEG has its header.
    """
    if size is not None and not data.startswith((PNG, JPEG)):
        raise Unusable("does not begin with its whole header")
    image = _opened(data, len(data) if size is None else size)
    return Header(image.mode in GREY, *image.size)


def pixels(data: bytes, *, grey: bool, side: int | None = None) -> Array:
    """Return the pixels uint8 (H, W, 1 or 3) of an encoded image; side: cropped and resized to it."""
    image = _opened(data, len(data))
    size = image.size
    try:
        image.load()
    except Exception as error:  # whatever Pillow's decoders raise, the file is at fault
        raise Unusable("is not a readable image (damaged or cut off)", damaged=True) from error
    if image.size != size:  # what is reserved for it would not hold it
        raise Unusable("is not a readable image (its header declares another size)", damaged=True)
    image = _opaque(image).convert("L" if grey else "RGB")
    if side is not None:
        image = centre_crop(image, side)
    return np.atleast_3d(np.asarray(image))


def centre_crop(image: Image.Image, side: int) -> Image.Image:
    """Return the image resized and cropped to side x side as openai/guided-diffusion's center_crop_arr does.

    Halved by box filters while the shorter side is twice as long, then bicubic to `side`, then the middle. An image
    that has this size stays as it is.
    """
    if image.size == (side, side):
        return image
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def cropped(pixels: Array, side: int) -> Array:
    """Return uint8 (side, side, C) of (H, W, C), C being 1 or 3; see `centre_crop`."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    return np.atleast_3d(np.asarray(centre_crop(image, side)))


def _opened(data: bytes, encoded: int) -> Image.Image:
    """Return the image in `data`, which has `encoded` bytes or is the beginning of so many; no pixels are decoded."""
    if not data:
        raise Unusable("is not a readable image (it is empty, 0 bytes)", damaged=True)
    try:
        image = Image.open(io.BytesIO(_without_metadata(data)), formats=FORMATS)
        frames = getattr(image, "n_frames", 1)
        tile = _tile_pixels(image)
    except Image.DecompressionBombError as error:
        raise Unusable(f"declares more than {MAX_PIXELS:,} pixels: possible decompression bomb") from error
    except Exception as error:
        raise Unusable("is not a readable image (no known format)", damaged=True) from error
    if max(image.width * image.height, tile) > MAX_PIXELS:
        raise Unusable(f"declares {image.width}x{image.height} pixels: possible decompression bomb")
    unpacked = image.width * image.height * len(image.getbands())
    if unpacked > max(SMALL, MAX_RATIO * encoded):
        raise Unusable(f"would unpack {encoded:,} bytes to {unpacked:,}: possible decompression bomb")
    if frames > 1 and image.format != "MPO":  # its first picture is the one that every reader of JPEG shows
        kind = f"holds {frames} pages" if image.format == "TIFF" else f"is animated ({frames} frames)"
        raise Unusable(f"{kind}: which one is meant? Save that one alone")
    if image.mode in ("I", "F") or "16" in image.mode or any(map(_is_deep, image.tile)):
        raise Unusable("has more than 8 bits a channel: convert it, as the rounding is for you to choose")
    if image.mode not in GREY | COLOUR:
        raise Unusable(f"is {image.mode}, whose conversion to RGB is not exact: save it as RGB")
    return image


def _is_deep(tile: Any) -> bool:
    """Return whether a tile's raw mode has 16 bits a channel ("RGB;16B"); "BGR;16" has 16 a pixel, in a BMP."""
    arguments = tile[3]
    raw = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return isinstance(raw, str) and not raw.startswith("BGR") and ";16" in raw


def _tile_pixels(image: Image.Image) -> int:
    """Return the size of a TIFF's tiles, each of which is decoded whole; 0 where there are none."""
    tags = getattr(image, "tag_v2", {})
    return int(tags.get(TILE_WIDTH, 0)) * int(tags.get(TILE_LENGTH, 0))


def _without_metadata(data: bytes) -> bytes:
    """Return a PNG without its colour profile and texts, of which Pillow refuses large ones; others as they are."""
    if not data.startswith(PNG):
        return data
    kept, place, begin = [], len(PNG), 0
    while place + 12 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        if data[place + 4 : place + 8] in ASIDE and end <= len(data):
            kept.append(data[begin:place])
            begin = end
        place = end
    return b"".join([*kept, data[begin:]]) if kept else data


def _opaque(image: Image.Image) -> Image.Image:
    """Return the image without an alpha channel that says nothing; Unusable where it hides something."""
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        alpha = image.convert("RGBA").getchannel("A")
        if np.asarray(alpha).min() < 255:
            raise Unusable("is transparent in places: flatten it onto the background that you mean")
        image.info.pop("transparency", None)
    return image
