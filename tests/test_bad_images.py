"""Every kind of bad input to `repa-eval fid`: one line each, and the table in docs/bad-images.md that shows them.

`WRITE_DOCS=1 python -m pytest tests/test_bad_images.py` writes the table anew.
"""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from helpers import digits
from repa_eval.cli import main as repa_eval
from repa_eval.extractors.inception import FILE

DOCS = Path(__file__).resolve().parent.parent / "docs" / "bad-images.md"
N = 12
JUDGE = """
import numpy as np
class Judge:
    def __call__(self, images):
        values = images.float().flatten(1)[:, :4] / 255 + images.float().mean((1, 2, 3))[:, None]
        return values
class Broken(Judge):
    def __call__(self, images):
        values = super().__call__(images)
        values[images.float().mean((1, 2, 3)) == 200] = float("nan")
        return values
"""


@dataclass(frozen=True)
class Bad:
    """what: as the document says it; make: writes it to the folder `s`, or another path that it returns."""

    what: str
    make: Callable[[Path], str | None]
    code: int
    says: str  # of the one line, or of a note where the exit code is 0
    options: str = ""


def picture(index: int, side: int = 8) -> Image.Image:
    pixels = np.random.default_rng(index).integers(0, 255, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def folder(path: Path, count: int = N) -> Path:
    path.mkdir(exist_ok=True)
    for index in range(count):
        picture(index).save(path / f"{index:03d}.png")
    return path


def with_file(name: str, content: bytes) -> Callable[[Path], None]:
    """A folder of good images, some of which are replaced."""

    def make(here: Path) -> None:
        folder(here / "s")
        for stem in ("003", "005"):
            (here / "s" / f"{stem}.png").unlink()
            (here / "s" / f"{stem}{Path(name).suffix}").write_bytes(content)

    return make


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def grey16(format: str) -> bytes:
    return encoded(Image.new("I;16", (8, 8), 300), format)


def profiled() -> bytes:
    return encoded(picture(1), icc_profile=bytes(1 << 21))


def png16() -> bytes:
    """A PNG of 16-bit RGB, which Pillow can read and not write."""
    rows = b"".join(b"\0" + bytes(8 * 6) for _ in range(8))
    return _png(8, 8, 16, rows)


def _png(width: int, height: int, depth: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def transparent(alpha: int) -> bytes:
    image = picture(1).convert("RGBA")
    image.putalpha(alpha)
    return encoded(image)


def palette() -> bytes:
    return encoded(picture(1).convert("P"))


def frames(format: str = "PNG") -> bytes:
    return encoded(picture(1), format, save_all=True, append_images=[picture(2), picture(3)])


def pages() -> bytes:
    return frames("TIFF")


def beside(*names: str) -> Callable[[Path], None]:
    """A folder of good images, and further ones that are no samples."""

    def make(here: Path) -> None:
        folder(here / "s")
        for name in names:
            (here / "s" / name).parent.mkdir(exist_ok=True)
            (here / "s" / name).write_bytes(encoded(picture(1)))

    return make


def broken_link(here: Path) -> None:
    folder(here / "s")
    (here / "s" / "012.png").symlink_to("gone.png")


def huge(here: Path) -> None:
    folder(here / "s")
    with open(here / "s" / "003.png", "r+b") as handle:
        handle.truncate(1 << 32)


def mixed_sizes(here: Path) -> None:
    folder(here / "s")
    for index in (4, 7):
        picture(index, 9).save(here / "s" / f"{index:03d}.png")


def in_zip(name: str, content: bytes) -> Callable[[Path], str]:
    def make(here: Path) -> str:
        with zipfile.ZipFile(here / "s.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for index in range(N):
                archive.writestr(f"{index:03d}.png", encoded(picture(index)))
            archive.writestr(name, content)
        return "s.zip"

    return make


def in_npz(array: np.ndarray) -> Callable[[Path], str]:
    def make(here: Path) -> str:
        np.savez(here / "s.npz", arr_0=array)
        return "s.npz"

    return make


def cut(make: Callable[[Path], str], share: float) -> Callable[[Path], str]:
    """What `make` wrote, without its end."""

    def shortened(here: Path) -> str:
        name = make(here)
        data = (here / name).read_bytes()
        (here / name).write_bytes(data[: int(share * len(data))])
        return name

    return shortened


def equal_places(here: Path) -> None:
    folder(here / "s")
    picture(1).save(here / "s" / "5.png")


def same_as_reference(here: Path) -> str:
    return str(folder(here / "r").name)


def nan_images(here: Path) -> None:
    folder(here / "s")
    for index in (2, 6, 7):
        Image.new("RGB", (8, 8), (200, 200, 200)).save(here / "s" / f"{index:03d}.png")


def broken_download(here: Path) -> None:
    folder(here / "s")
    place = here / "hub" / "checkpoints"
    place.mkdir(parents=True)
    torch.save({"w": torch.zeros(1000)}, place / FILE)
    (place / FILE).write_bytes((place / FILE).read_bytes()[:700])


def few(count: int) -> Callable[[Path], None]:
    return lambda here: folder(here / "s", count) and None


ARRAY = np.stack([np.asarray(picture(index)) for index in range(N)])
CASES = [
    Bad("not an image (corrupt)", with_file("x.png", b"no image at all"), 1, "003.png is not a readable image (no kn"),
    Bad("a truncated image", with_file("x.png", encoded(picture(1))[:90]), 1, "003.png is not a readable image ("),
    Bad("an empty file (0 bytes)", with_file("x.png", b""), 1, "it is empty, 0 bytes); 2 of 12 images cannot be used"),
    Bad("an animation", with_file("x.png", frames()), 2, "003.png is animated (3 frames)"),
    Bad("16 bits, grey", with_file("x.png", grey16("PNG")), 2, "more than 8 bits a channel"),
    Bad("16 bits, RGB", with_file("x.png", png16()), 2, "more than 8 bits a channel"),
    Bad("16 bits in a TIFF", with_file("x.tif", grey16("TIFF")), 2, "more than 8 bits"),
    Bad("a TIFF of several pages", with_file("x.tif", pages()), 2, "003.tif holds 3 pages"),
    Bad("a GIF of several frames", with_file("x.gif", frames("GIF")), 2, "003.gif is animated (3 frames)"),
    Bad("a TIFF or GIF of 8 bits and one frame", with_file("x.tif", encoded(picture(1), "TIFF")), 0, ""),
    Bad("a JPEG with a second picture (MPO)", with_file("x.jpg", frames("MPO")), 0, ""),
    Bad("a PNG with a colour profile of 2 MB", with_file("x.png", profiled()), 0, ""),
    Bad("grey among RGB", with_file("x.png", encoded(picture(1).convert("L"))), 0, ""),
    Bad("a palette", with_file("x.png", palette()), 0, ""),
    Bad("an alpha channel, opaque", with_file("x.png", transparent(255)), 0, ""),
    Bad("an alpha channel, transparent", with_file("x.png", transparent(90)), 2, "transparent in places"),
    Bad("CMYK", with_file("x.jpg", encoded(picture(1).convert("CMYK"), "JPEG")), 2, "003.jpg is CMYK, whose"),
    Bad("images of different sizes", mixed_sizes, 2, "004.png is not like the first (9x9, not 8x8; 2 of 12 differ)"),
    Bad("the same, with --resize", mixed_sizes, 0, "", "--resize 8"),
    Bad("an image that declares 10^10 pixels", with_file("x.png", _png(10**5, 10**5, 8, b"")), 2, "pixels: possible"),
    Bad("floats in an npz", in_npz(ARRAY / 127.5 - 1), 2, "not float64 (12, 8, 8, 3) in -1..0.992: convert it"),
    Bad("another layout in an npz", in_npz(ARRAY.transpose(0, 3, 1, 2)), 2, "expected arr_0 of uint8 (N, H, W, C)"),
    Bad("an npz of Python objects", in_npz(np.array([{}], dtype=object)), 1, "Python objects, which are never unp"),
    Bad("a truncated npz", cut(in_npz(ARRAY), 0.6), 1, "s.npz cannot be read"),
    Bad("a truncated zip", cut(in_zip("x.png", b""), 0.6), 1, "s.zip cannot be read"),
    Bad("a damaged image in a zip", in_zip("x.png", b"nothing"), 1, "x.png is not a readable image"),
    Bad("a zip bomb", in_zip("x.png", bytes(1 << 26)), 2, "67,108,864: possible decom"),
    Bad("a zip member that leads outside", in_zip("../x.png", b""), 2, "../x.png points outside of the archive"),
    Bad("an encoded image of 4 GB", huge, 2, "003.png takes 4,294,967,296 bytes, more than an image that can be used"),
    Bad("hidden and service folders", beside(".thumbnails/a.png", "__MACOSX/._a.png"), 0,
        "12 images are used; left out: 2 (hidden or in a service folder"),
    Bad("a broken link", broken_link, 0, "12 images are used; left out: 1 (broken link: 012.png)"),
    Bad("images of a format that is not read", beside("012.avif"), 0, "left out: 1 (format .avif is not read"),
    Bad("two files for one index", equal_places, 2, "005.png and 5.png both are image 5"),
    Bad("a folder without images", lambda here: (here / "s").mkdir(), 2, "s: no images (looked for"),
    Bad("one image", few(1), 2, "s: 1 image; a distribution needs 2 or more"),
    Bad("fewer images than neighbours", few(3), 2, "k=3 neighbours need more than 3 samples; given are 3"),
    Bad("fewer images than twice the features", few(7), 0, "n=7 is below twice the 4 features"),
    Bad("the reference itself", same_as_reference, 0, ""),
    Bad("features that are NaN", nan_images, 2, "NaN or infinity for 3 of 12 images of s, first for image 2",
        "--extractor judging:Broken"),
    Bad("an interrupted download of weights", broken_download, 1, "is damaged, as an interrupted download leaves it",
        "--extractor inception"),
]  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    (tmp_path / "judging.py").write_text(JUDGE)
    folder(tmp_path / "r")
    return tmp_path


def line_of(bad: Bad, here: Path, caplog: pytest.LogCaptureFixture) -> tuple[int, str]:
    """Exit code, and the line on stderr or the notes of the answer and what is said beside it."""
    samples = bad.make(here) or "s"
    words = ["fid", "--samples", samples, "--reference", "r", "--json", *bad.options.split()]
    if "--extractor" not in bad.options:
        words += ["--extractor", "judging:Judge"]
    done = CliRunner().invoke(repa_eval, words)
    if done.exit_code == 0:
        logged = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return 0, "; ".join([*json.loads(done.stdout)["warnings"], *logged])
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    return done.exit_code, done.stderr.removeprefix("error: ").strip().replace(str(here), "...")


def row_of(bad: Bad, code: int, line: str) -> str:
    given = f" (`{bad.options}`)" if bad.options and "judging" not in bad.options else ""
    if code == 0:
        return f"| {bad.what}{given} | used{f', with the note: `{line}`' if line else ''} |"
    return f"| {bad.what}{given} | `{line}` |"


@pytest.mark.parametrize("bad", CASES, ids=lambda bad: bad.what)
def test_bad_input_is_one_line(bad: Bad, here: Path, caplog: pytest.LogCaptureFixture) -> None:
    code, line = line_of(bad, here, caplog)
    assert code == bad.code, line
    assert bad.says in line
    if not bad.says:
        assert line == ""
    if os.environ.get("WRITE_DOCS"):
        return
    assert row_of(bad, code, line) in DOCS.read_text(encoding="utf-8"), "write the table anew: WRITE_DOCS=1"


def test_the_document_is_written_anew_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """WRITE_DOCS=1 rewrites the table; without it the first rows are made and must stand in the document already."""
    chosen = CASES if os.environ.get("WRITE_DOCS") else CASES[:3]
    rows = []
    for place, bad in enumerate(chosen):
        here = tmp_path / str(place)
        here.mkdir()
        monkeypatch.chdir(here)
        monkeypatch.syspath_prepend(here)
        monkeypatch.setattr(torch.hub, "_hub_dir", str(here / "hub"))
        (here / "judging.py").write_text(JUDGE)
        folder(here / "r")
        rows.append(row_of(bad, *line_of(bad, here, caplog)))
    text = DOCS.read_text(encoding="utf-8")
    if os.environ.get("WRITE_DOCS"):
        head = text[: text.index("| input")]
        DOCS.write_text(f"{head}| input | what `repa-eval fid` says |\n|---|---|\n" + "\n".join(rows) + "\n")
    else:
        assert all(row in text for row in rows)


def test_the_document_has_a_row_for_every_case() -> None:
    lines = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert len(lines) - 1 == len(CASES)


def test_identical_folders_are_at_distance_zero(here: Path) -> None:
    images = digits("reference").images[:200]
    np.savez("same.npz", arr_0=images.transpose(0, 2, 3, 1))
    words = ["fid", "--samples", "same.npz", "--reference", "same.npz", "--extractor", "digits", "--json"]
    rows = json.loads(
        CliRunner().invoke(repa_eval, [*words, "--metrics", "fd,precision_recall,kid,cmmd_digits"]).stdout
    )
    found = {row["metric"]: row["value"] for row in rows["rows"]}
    assert found["fd_digits"] == pytest.approx(0.0, abs=1e-6)
    assert found["precision_digits"] == found["recall_digits"] == 1.0
    assert found["cmmd_digits"] == pytest.approx(0.0, abs=1e-9)


def test_conversions_lose_nothing(tmp_path: Path) -> None:
    """Grey among RGB, palettes and opaque alpha give the pixels that the file means, whichever file comes first."""
    from repa_eval.data.readers.image_files import open_images

    (tmp_path / "a").mkdir()
    colour = picture(5)
    Image.fromarray(np.asarray(picture(3))[..., 0]).save(tmp_path / "a" / "0.png")  # grey first
    colour.save(tmp_path / "a" / "1.png")
    opaque = colour.convert("RGBA")
    opaque.save(tmp_path / "a" / "2.png")
    indexed = Image.new("P", (8, 8))
    indexed.putpalette([10, 20, 30, 40, 50, 60])
    indexed.putpixel((2, 1), 1)
    indexed.save(tmp_path / "a" / "3.png")
    images = open_images(tmp_path / "a").pixels(range(4)).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(images[0], np.asarray(picture(3))[..., :1].repeat(3, -1))
    assert np.array_equal(images[1], np.asarray(colour))
    assert np.array_equal(images[2], images[1])
    assert images[3][0, 0].tolist() == [10, 20, 30]
    assert images[3][1, 2].tolist() == [40, 50, 60]
