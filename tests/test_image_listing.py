"""Which files of a folder or zip are images, which are left out, and that the latter are counted aloud."""

from __future__ import annotations

import io
import logging
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from repa_eval.cli import main as repa_eval
from repa_eval.data.readers import image_files, listing, pictures
from repa_eval.data.readers.image_files import open_images
from repa_eval.data.readers.listing import list_folder, printable
from repa_eval.errors import Failure, UserError
from repa_eval.evaluation.reference import listing_hash
from repa_eval.interfaces.image_source import MAX_FETCH, rows_at_once
from repa_eval.interfaces.images import load_data


def image(index: int, side: int = 8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(index).integers(0, 256, (side, side), dtype=np.uint8))


def fill(folder: Path, count: int = 6, *, first: int = 0, suffix: str = ".png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(first, first + count):
        image(index).save(folder / f"{index:03d}{suffix}")
    return folder


def encoded(index: int, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image(index).save(buffer, format=format)
    return buffer.getvalue()


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    caplog.set_level(logging.WARNING)
    return lambda: "\n".join(record.getMessage() for record in caplog.records)


# --- hidden and service folders


@pytest.mark.parametrize(
    "left_out",
    [
        ".ipynb_checkpoints/a-checkpoint.png", ".thumbnails/a.png", "@eaDir/a.png", "__MACOSX/._a.png", "._000.png",
        ".hidden.png", "c0/.cache/deep/a.png", "#recycle/a.jpg", "lost+found/a.png",
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_hidden_and_service_folders_hold_no_samples(
    left_out: str, kind: str, tmp_path: Path, said: Callable[[], str]
) -> None:
    path = fill(tmp_path / ".work" / "s")  # what the user names may lie anywhere
    (path / left_out).parent.mkdir(parents=True, exist_ok=True)
    (path / left_out).write_bytes(encoded(9))
    if kind == "zip":
        path = zipped(path, tmp_path / "s.zip")
    source = open_images(path)
    assert [Path(member).name for member in source.members] == [f"{index:03d}.png" for index in range(6)]  # type: ignore[union-attr]
    assert source.num_classes == 1
    assert f"6 images are used; left out: 1 (hidden or in a service folder: {left_out})" in said()


def zipped(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    return path


def test_nothing_is_said_of_files_that_are_no_images(tmp_path: Path, said: Callable[[], str]) -> None:
    fill(tmp_path / "s")
    for name in ("README.md", ".DS_Store", "Thumbs.db", "samples.json", ".000.png.1.tmp"):
        (tmp_path / "s" / name).write_bytes(b"x")
    assert len(open_images(tmp_path / "s")) == 6
    assert said() == ""


def test_what_is_left_out_is_said_by_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fill(Path("s"), 40)
    fill(Path("s/.thumbnails"), 3)
    words = ["fid", "--samples", "s", "--reference", "digits", "--extractor", "digits", "--metrics", "fd", "--quiet"]
    done = CliRunner().invoke(repa_eval, words)
    assert done.exit_code == 0, done.output
    assert "n=40," in done.stdout


# --- links


def test_linked_folders_are_read(tmp_path: Path, said: Callable[[], str]) -> None:
    fill(tmp_path / "elsewhere", first=6)
    fill(tmp_path / "s" / "c0")
    (tmp_path / "s" / "c1").symlink_to(tmp_path / "elsewhere")
    source = open_images(tmp_path / "s")
    assert len(source) == 12
    assert source.class_names == ("c0", "c1")
    assert source.all_labels().tolist() == [0] * 6 + [1] * 6
    copied = fill(tmp_path / "t" / "c1", first=6).parent
    fill(copied / "c0")
    assert source.digest() == open_images(copied).digest()
    assert said() == ""


def test_a_linked_file_is_read_and_a_broken_link_is_said(tmp_path: Path, said: Callable[[], str]) -> None:
    fill(tmp_path / "s", 4)
    fill(tmp_path / "real", 1, first=7)
    (tmp_path / "s" / "007.png").symlink_to(tmp_path / "real" / "007.png")
    (tmp_path / "s" / "008.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "s" / "c9").symlink_to(tmp_path / "gone")
    (tmp_path / "s" / "009.png").symlink_to("009.png")
    (tmp_path / "s" / ".hidden").symlink_to(tmp_path / "gone")
    assert len(open_images(tmp_path / "s")) == 5
    assert "5 images are used; left out: 3 (broken link: 008.png, 009.png, c9)" in said()


def test_links_that_lead_back_end(tmp_path: Path, said: Callable[[], str]) -> None:
    fill(tmp_path / "s" / "a")
    (tmp_path / "s" / "a" / "up").symlink_to(tmp_path / "s")
    (tmp_path / "s" / "b").symlink_to("a")  # a second way to the same images
    found = open_images(tmp_path / "s")
    assert len(found) == 12
    assert "2 (link back into its own folder: a/up, b/up)" in said()


def test_links_that_multiply_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for level in range(10):
        (tmp_path / f"d{level}").mkdir()
    for level in range(9):
        for name in "ab":
            (tmp_path / f"d{level}" / name).symlink_to(tmp_path / f"d{level + 1}")
    monkeypatch.setattr(listing, "MAX_LINKED", 100)
    with pytest.raises(UserError, match="links lead to more than 100 folders"):
        list_folder(tmp_path / "d0")


def test_a_fifo_is_not_waited_for(tmp_path: Path, said: Callable[[], str]) -> None:
    fill(tmp_path / "s")
    os.mkfifo(tmp_path / "s" / "010.png")
    assert len(open_images(tmp_path / "s")) == 6
    assert "1 (no regular file: 010.png)" in said()


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], str]) -> None:
    fill(tmp_path / "s" / "c0")
    fill(tmp_path / "s" / "lost+found")
    usual = os.scandir

    def scandir(path: Path) -> object:
        if path.name == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return usual(path)

    monkeypatch.setattr(os, "scandir", scandir)
    closed = "lost+found"
    assert len(open_images(tmp_path / "s")) == 6
    assert "1 (cannot be read: lost+found/)" in said()
    closed = "c0"
    with pytest.raises(Failure, match="c0 cannot be read: Permission denied"):
        open_images(tmp_path / "s")


# --- formats


@pytest.mark.parametrize("suffix", [".tif", ".tiff", ".gif", ".jfif", ".jpe", ".TIF", ".bmp", ".webp"])
def test_further_formats_are_read(suffix: str, tmp_path: Path) -> None:
    fill(tmp_path / "s")
    format = {".jfif": "JPEG", ".jpe": "JPEG"}.get(suffix, {".tif": "TIFF"}.get(suffix.lower()))
    for index in range(6, 12):
        image(index).save(
            tmp_path / "s" / f"{index:03d}{suffix}", format=format, **({"lossless": True} if suffix == ".webp" else {})
        )
    source = open_images(tmp_path / "s")
    assert len(source) == 12
    if format != "JPEG":
        pixels = source.pixels(range(12)).numpy()
        assert all(np.array_equal(pixels[index, 0], np.asarray(image(index))) for index in range(12))


@pytest.mark.parametrize("suffix", [".avif", ".jp2", ".ppm", ".jxl", ".HEIC"])
def test_formats_that_are_not_read_are_counted(suffix: str, tmp_path: Path, said: Callable[[], str]) -> None:
    fill(tmp_path / "s")
    for index in range(6, 11):
        (tmp_path / "s" / f"{index:03d}{suffix}").write_bytes(b"x")
    assert len(open_images(tmp_path / "s")) == 6
    assert f"left out: 5 (format {suffix.lower()} is not read: 006{suffix}, 007{suffix}, 008{suffix}, ...)" in said()
    for index in range(6):
        (tmp_path / "s" / f"{index:03d}.png").unlink()
    with pytest.raises(UserError, match=rf"no images \(.*; there are 5 \(format {suffix.lower()}"):
        open_images(tmp_path / "s")


# --- names


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    fill(tmp_path / "s" / "c")
    odd = os.fsencode(tmp_path / "s") + b"/d\xe9"
    os.rename(tmp_path / "s" / "c", odd)
    os.rename(odd + b"/000.png", odd + b"/caf\xe9.png")
    source = open_images(tmp_path / "s")
    assert source.class_names == ("d\\xe9",)
    assert len(source.digest()) == 12
    assert len(listing_hash(tmp_path / "s")) == 12
    os.rename(odd + b"/001.png", odd + b"/00\xe9.png")
    assert load_data(f"folder:{os.fsdecode(odd)}", "train").name == f"folder:{tmp_path}/s/d\\xe9"
    Path(os.fsdecode(odd + b"/002.png")).write_bytes(b"")
    with pytest.raises(Failure, match=r"d\\xe9/002\.png is not a readable image") as caught:
        open_images(tmp_path / "s")
    str(caught.value).encode()
    assert printable("snow ☃.png") == "snow ☃.png"


def test_a_folder_whose_name_is_not_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.rename(fill(tmp_path / "s", 40), os.fsencode(tmp_path) + b"/caf\xe9")
    name = os.fsdecode(b"caf\xe9")
    for words in (
        ["stats", name, "--out", os.fsdecode(b"ref\xe9.npz"), "--extractor", "digits"],
        ["fid", "--samples", name, "--reference", name, "--extractor", "digits", "--metrics", "fd"],
        [
            "fid", "--samples", name, "--reference", os.fsdecode(b"ref\xe9.npz"), "--extractor", "digits", "--metrics",
            "fd", "--rows", "t",
        ],
    ):  # fmt: skip
        done = CliRunner().invoke(repa_eval, words)
        assert done.exit_code == 0, done.output
    assert "ref\\\\xe9.npz" in Path("t/protocols.json").read_text()


def test_names_with_backslashes_in_a_zip(tmp_path: Path) -> None:
    folder = fill(tmp_path / "s" / "c0")
    fill(tmp_path / "s" / "c1", first=6)
    usual = open_images(zipped(folder.parent, tmp_path / "a.zip"))
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("c0\\", b"")
        for index in range(12):
            archive.writestr(zipfile.ZipInfo(f"c{index // 6}\\{index:03d}.png"), encoded(index))
    of_windows = open_images(tmp_path / "b.zip")
    assert of_windows.class_names == ("c0", "c1")
    assert np.array_equal(of_windows.pixels(range(12)), usual.pixels(range(12)))
    assert of_windows.digest() == usual.digest()


@pytest.mark.parametrize("name", ["..\\x.png", "\\x.png", "C:\\x.png", "c0\\..\\..\\x.png", "/x.png", "../x.png"])
def test_names_that_leave_a_zip(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        archive.writestr(name, encoded(1))
    with pytest.raises(UserError, match="points outside of the archive"):
        open_images(tmp_path / "s.zip")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_twice_in_a_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        archive.writestr("c/x.png", encoded(1))
        archive.writestr("c\\x.png", encoded(1))
    with pytest.raises(UserError, match=r"c/x\.png is there twice"):
        open_images(tmp_path / "s.zip")


def test_a_number_of_ten_thousand_digits(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        for index in range(3):
            archive.writestr("7" * (10_000 + index) + ".png", encoded(index))
    assert len(open_images(tmp_path / "s.zip")) == 3


# --- what a file is, is seen by its content


def test_files_of_any_name(tmp_path: Path) -> None:
    archive = zipped(fill(tmp_path / "s"), tmp_path / "s.zip")
    np.savez(tmp_path / "a.npz", arr_0=np.stack([np.asarray(image(index))[..., None] for index in range(6)]))
    expected = open_images(tmp_path / "s").pixels(range(6))
    for number, file in enumerate((archive, tmp_path / "a.npz")):
        for suffix in (".zip", ".npz", ".cbz", ""):
            if (file.suffix, suffix) == (".zip", ".npz"):
                continue
            path = tmp_path / f"copy{number}{suffix}"
            path.write_bytes(file.read_bytes())
            assert np.array_equal(open_images(path).pixels(range(6)), expected), path
    (tmp_path / "t.txt").write_text("x")
    with pytest.raises(UserError, match=r"t\.txt: expected a folder of images, a \.zip or a \.npz"):
        open_images(tmp_path / "t.txt")


# --- the hash of a reference's source


def test_files_that_are_not_read_do_not_change_a_listing(tmp_path: Path) -> None:
    folder = fill(tmp_path / "s")
    before = listing_hash(folder)
    fill(folder / ".thumbnails")
    for name in (".DS_Store", "Thumbs.db", "README.md", "desktop.ini", "notes.txt"):
        (folder / name).write_bytes(b"x")
    assert listing_hash(folder) == before
    fill(folder, 1, first=77)
    assert listing_hash(folder) != before


def test_a_source_without_images_is_listed_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "data.arrow").write_bytes(b"x")
    before = listing_hash(tmp_path)
    (tmp_path / ".cache.lock").write_bytes(b"x")
    assert listing_hash(tmp_path) == before
    (tmp_path / "data.arrow").write_bytes(b"xy")
    assert listing_hash(tmp_path) != before


# --- memory


def test_few_images_are_decoded_at_once_if_they_are_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_images(fill(tmp_path / "s", 40))
    assert isinstance(source, image_files.ImageFiles)
    counts = []

    class Pool(pictures.ThreadPoolExecutor):
        def __init__(self, count: int) -> None:
            counts.append(count)
            super().__init__(count)

    monkeypatch.setattr(pictures, "THREADS", 8)
    monkeypatch.setattr(pictures, "ThreadPoolExecutor", Pool)
    one = source._bytes_of_one
    for limit, expected in ((100 * one, 8), (3 * one, 3), (one, None), (1, None)):
        monkeypatch.setattr(pictures, "AT_ONCE", limit)
        counts.clear()
        assert np.array_equal(source.pixels([3])[0, 0], np.asarray(image(3)))
        source.pixels(range(40))
        assert counts == ([] if expected is None else [expected])


def test_large_batches_are_refused_or_made_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = open_images(fill(tmp_path / "s"))
    np.savez(tmp_path / "a.npz", arr_0=np.zeros((6, 8, 8, 1), np.uint8))
    monkeypatch.setattr("repa_eval.interfaces.image_source.MAX_FETCH", 5 * 64)
    for source in (folder, open_images(tmp_path / "a.npz")):
        assert len(source.pixels(range(5))) == 5
        assert len(source.fetch(range(6), ("labels",)).labels) == 6  # type: ignore[arg-type]
        with pytest.raises(UserError, match=r"a batch of 6 images of 8x8 takes 0\.0 GB of memory; use smaller"):
            source.pixels(range(6))
    assert rows_at_once((3, 256, 256)) == 256
    assert rows_at_once((1, 10_000, 10_000)) == 2
    assert rows_at_once((3, 1 << 16, 1 << 16)) == 1
    assert rows_at_once(None, 7) == 7
    assert MAX_FETCH < 4e9


def test_a_batch_of_a_measurement_fits_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features and digests are those of the usual batches; no batch is larger than MAX_BATCH."""
    from repa_eval.evaluation.sample_features import gather
    from repa_eval.interfaces.extractor import load_extractor

    source = open_images(fill(tmp_path / "s", 40))
    extractor = load_extractor("digits")
    usual, digest = gather(source, extractor), source.part(0, 40).digest()
    sizes = []
    fetch = image_files.ImageFiles.fetch

    def counting(self: image_files.ImageFiles, indices: list[int], kinds: tuple[str, ...] = ("images",)) -> object:
        sizes.append(len(indices) if "images" in kinds else 0)
        return fetch(self, indices, kinds)

    monkeypatch.setattr(image_files.ImageFiles, "fetch", counting)
    monkeypatch.setattr("repa_eval.interfaces.image_source.MAX_BATCH", 7 * 64 + 63)
    small = gather(source, extractor)
    assert usual is not None
    assert small is not None
    np.testing.assert_allclose(small.rows["features"], usual.rows["features"], rtol=1e-5, atol=1e-6)
    assert source.part(0, 40).digest() == digest
    assert max(sizes) == 7


def test_an_encoded_image_larger_than_any(tmp_path: Path) -> None:
    fill(tmp_path / "s", 3)
    with open(tmp_path / "s" / "003.png", "wb") as handle:
        handle.write(encoded(3))
        handle.truncate(6 << 30)  # a hole: it takes no place
    with pytest.raises(UserError, match=r"003\.png takes 6,442,450,944 bytes, more than an image that can be used"):
        open_images(tmp_path / "s")


def test_small_members_that_expand_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "s.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for index in range(10):
            archive.writestr(f"{index}.png", bytes(1 << 20))
    monkeypatch.setattr(listing, "BOMB_TOTAL", 9 << 20)
    with pytest.raises(UserError, match=r"would unpack 10,\d\d0 bytes to 10,485,760: possible decompression bomb"):
        open_images(tmp_path / "s.zip")


def test_refused_images_do_not_stay_in_memory(tmp_path: Path) -> None:
    """An exception's traceback holds the frame in which the bytes of its file are."""
    from repa_eval.data.readers import decode

    fill(tmp_path / "s", 3)
    source = open_images(tmp_path / "s")
    assert isinstance(source, image_files.ImageFiles)
    (tmp_path / "s" / "001.png").write_bytes(b"damaged")
    for answer in (source._header(1), source._pixels(1)):
        assert isinstance(answer, decode.Unusable)
        assert answer.__traceback__ is answer.__cause__ is answer.__context__ is None
        assert answer.damaged
