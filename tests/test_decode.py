"""Encoded images: what is read exactly, and what is refused for which reason."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from repa_eval.data.readers import decode

RNG = np.random.default_rng(0)


def array(height: int, width: int, channels: int = 3) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("width", [1, 2, 5, 15, 16, 17, 40, 53, 54, 72, 116, 160, 216, 720])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("format", ["BMP", "TIFF", "PNG"])
def test_eight_bits_whatever_the_length_of_a_row(width: int, channels: int, format: str) -> None:
    """A row of 16, 160 or 216 bytes is no depth of 16 bits."""
    pixels = array(3, width, channels)
    data = encoded(Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels), format)
    assert decode.header(data) == decode.Header(channels == 1, width, 3)
    assert np.array_equal(decode.pixels(data, grey=channels == 1), pixels)


@pytest.mark.parametrize("height", [16, 160])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_tiff_is_read_exactly(height: int, compression: str) -> None:
    pixels = array(height, 7)
    data = encoded(Image.fromarray(pixels), "TIFF", compression=compression)
    assert np.array_equal(decode.pixels(data, grey=False), pixels)


def test_gif_is_read_exactly() -> None:
    grey = array(5, 6, 1)
    assert np.array_equal(decode.pixels(encoded(Image.fromarray(grey[..., 0]), "GIF"), grey=True), grey)
    image = Image.fromarray(array(5, 6)).quantize(20)
    data = encoded(image, "GIF")
    assert np.array_equal(decode.pixels(data, grey=False), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("image", "format"),
    [
        (Image.new("I;16", (8, 8)), "TIFF"), (Image.new("I;16", (16, 8)), "PNG"), (Image.new("F", (8, 8)), "TIFF"),
        (Image.new("I", (8, 8)), "TIFF"),
    ],
)  # fmt: skip
def test_more_than_eight_bits_are_refused(image: Image.Image, format: str) -> None:
    with pytest.raises(decode.Unusable, match="more than 8 bits a channel"):
        decode.header(encoded(image, format))


@pytest.mark.parametrize("order", "<>")
def test_a_tiff_of_sixteen_bits_and_three_channels(order: str) -> None:
    with pytest.raises(decode.Unusable, match="more than 8 bits a channel"):
        decode.header(tiff(order, bits=16, pixels=bytes(2 * 2 * 3 * 2)))
    assert decode.pixels(tiff(order, bits=8, pixels=bytes(range(12))), grey=False).ravel().tolist() == list(range(12))


def tiff(order: str, *, bits: int, pixels: bytes, tile: int | None = None) -> bytes:
    """A TIFF of 2x2 pixels RGB, not compressed."""
    depths, begin = 8, 14  # where the three depths and the pixels lie
    if len(pixels) % 2:
        pixels += b"\0"
    entries = [(256, 3, 1, 2), (257, 3, 1, 2), (258, 3, 3, depths), (259, 3, 1, 1), (262, 3, 1, 2), (277, 3, 1, 3)]
    if tile is None:
        entries += [(273, 4, 1, begin), (278, 3, 1, 2), (279, 4, 1, len(pixels))]
    else:
        entries += [(322, 4, 1, tile), (323, 4, 1, tile), (324, 4, 1, begin), (325, 4, 1, len(pixels))]
    table = struct.pack(order + "H", len(entries))
    for tag, kind, count, value in sorted(entries):
        packed = struct.pack(order + "HH", value, 0) if kind == 3 and count == 1 else struct.pack(order + "I", value)
        table += struct.pack(order + "HHI", tag, kind, count) + packed
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", 42, begin + len(pixels))
    return head + struct.pack(order + "3H", bits, bits, bits) + pixels + table + bytes(4)


def test_a_tiff_whose_tiles_are_larger_than_any_image() -> None:
    with pytest.raises(decode.Unusable, match="possible decompression bomb"):
        decode.header(tiff("<", bits=8, pixels=bytes(12), tile=1 << 15))


def test_several_pages_and_frames() -> None:
    more = [Image.fromarray(array(8, 8)) for _ in range(2)]
    image = Image.fromarray(array(8, 8))
    for format, text in (
        ("TIFF", "holds 3 pages: which"),
        ("GIF", "is animated [(]3 frames"),
        ("PNG", "is animated [(]3"),
    ):
        with pytest.raises(decode.Unusable, match=text):
            decode.header(encoded(image, format, save_all=True, append_images=more))


def test_the_first_picture_of_an_mpo_is_used() -> None:
    """Cameras and telephones write such files as .jpg: a JPEG, with another picture behind it."""
    first, second = (Image.fromarray(array(16, 16)) for _ in range(2))
    data = encoded(first, "MPO", save_all=True, append_images=[second], quality=90)
    alone = encoded(first, "JPEG", quality=90)
    assert decode.header(data) == decode.Header(False, 16, 16)
    assert np.array_equal(decode.pixels(data, grey=False), decode.pixels(alone, grey=False))


# --- metadata of a PNG


@pytest.mark.parametrize("what", ["profile", "compressed text", "text", "international text", "text after the pixels"])
def test_large_metadata_do_not_matter(what: str) -> None:
    pixels = array(6, 5)
    options: dict[str, Any] = {}
    if what == "profile":
        options["icc_profile"] = bytes(2_000_000)
    elif "text" in what:
        info = PngInfo()
        for number in range(1 if what != "international text" else 70):
            if what == "international text":
                info.add_itxt(f"Key{number}", "x" * 1_000_000, zip=True)
            else:
                info.add_text("Comment", "x" * 2_000_000, zip=what != "text")
        options["pnginfo"] = info
    data = encoded(Image.fromarray(pixels), "PNG", **options)
    if what == "text after the pixels":
        begin, text, rest = data.partition(data[data.index(b"zTXt") - 4 : data.index(b"IDAT") - 4])
        data = begin + rest[:-12] + text + rest[-12:]
    assert np.array_equal(decode.pixels(data, grey=False), pixels)


def test_chunks_that_matter_are_kept() -> None:
    """Palette, transparency and animation are seen as without metadata; a lying length damages nothing else."""
    image = Image.fromarray(array(8, 8)).quantize(8)
    data = encoded(image, "PNG", transparency=3, icc_profile=bytes(100))
    with pytest.raises(decode.Unusable, match="transparent in places"):
        decode.pixels(data, grey=False)
    frames = encoded(image, "PNG", save_all=True, append_images=[Image.new("P", (8, 8))], icc_profile=bytes(100))
    with pytest.raises(decode.Unusable, match="animated"):
        decode.header(frames)
    lying = decode.PNG + struct.pack(">I", 0xFFFFFFFF) + b"tEXt" + data[8:]
    with pytest.raises(decode.Unusable, match="not a readable image"):
        decode.header(lying)


def test_a_profile_in_front_of_a_cut_file() -> None:
    data = encoded(Image.fromarray(array(64, 64)), "PNG", icc_profile=bytes(100))
    with pytest.raises(decode.Unusable, match="damaged or cut off"):
        decode.pixels(data[:-2000], grey=False)


# --- formats


def test_a_small_file_of_a_large_image() -> None:
    blank = Image.new("L", (6000, 6000), 7)
    with pytest.raises(
        decode.Unusable, match=r"would unpack \d\d,\d\d\d bytes to 36,000,000: possible decompression bomb"
    ):
        decode.header(encoded(blank, "PNG"))
    assert decode.header(encoded(blank, "JPEG")).grey  # JPEG cannot do better
    assert decode.header(encoded(Image.new("L", (5000, 5000)), "PNG")).width == 5000


def test_formats_for_which_programs_are_started_are_not_tried() -> None:
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"
    for data in (eps, b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"P5 2 2 255\n0000"):
        with pytest.raises(decode.Unusable, match="no known format"):
            decode.header(data)


@pytest.mark.filterwarnings("ignore")  # Pillow's, which `quiet` keeps away
def test_a_file_may_declare_what_it_likes() -> None:
    """Whatever random damage does to an image, it is read or refused; nothing else is raised."""
    sources = [
        encoded(Image.fromarray(array(16, 16)), format)
        for format in ("PNG", "BMP", "TIFF", "GIF", "JPEG", "WEBP")
    ]  # fmt: skip
    seen = set()
    for number in range(600):
        data = bytearray(sources[number % len(sources)])
        for _ in range(1 + number % 5):
            data[int(RNG.integers(len(data)))] = int(RNG.integers(256))
        if data.startswith(decode.PNG):  # a decoder that stops at a checksum tries nothing
            data = repaired(bytes(data))
        try:
            seen.add(decode.pixels(bytes(data), grey=False).dtype.name)
        except decode.Unusable as why:
            seen.add(str(why)[:20])
    assert {"uint8", "is not a readable im"} <= seen


def repaired(data: bytes) -> bytes:
    """A PNG whose chunks have right checksums."""
    place, fixed = 8, data[:8]
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        body = data[place + 4 : place + 8 + length]
        fixed += data[place : place + 4] + body + struct.pack(">I", zlib.crc32(body))
        place += 12 + length
    return fixed + data[place:]
