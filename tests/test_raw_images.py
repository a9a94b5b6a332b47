"""Raw images of any size as data: cropped when they are fetched, read only where they are used."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import repa_eval as re
from helpers import digits, steps_of, tiny
from repa_eval.data.readers import decode, pictures
from repa_eval.data.readers.image_files import ImageFiles, open_images
from repa_eval.errors import Failure, UserError
from repa_eval.interfaces.image_source import ImageSource
from repa_eval.interfaces.images import load_data
from repa_eval.interfaces.teacher import Teacher, Tokens

SIZES = [(20, 12), (12, 31), (8, 8), (9, 40), (16, 16), (33, 17)]  # width, height


def photo(index: int, size: tuple[int, int] = (12, 12), mode: str = "RGB") -> Image.Image:
    """A smooth picture with some noise, another one for every index."""
    width, height = size
    rng = np.random.default_rng(index)
    ramp = np.add.outer(np.linspace(0, 120, height), np.linspace(0, 80, width))[..., None] * [1.0, 0.8, 0.5]
    return Image.fromarray((ramp + rng.integers(0, 40, (height, width, 3))).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def raw(folder: Path, sizes: list[tuple[int, int]] = SIZES) -> Path:
    """Photographs in two class folders."""
    for index, size in enumerate(sizes):
        place = folder / ("cat", "dog")[index % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{index:03d}.png").write_bytes(encoded(photo(index, size)))
    return folder


def zipped(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, file.relative_to(folder))
    return path


def adm_crop(image: Image.Image, side: int) -> np.ndarray:
    """guided-diffusion's center_crop_arr, after its description: halve by boxes, bicubic, cut the middle out."""
    while min(image.size) >= 2 * side:
        image = image.resize((image.size[0] // 2, image.size[1] // 2), resample=Image.Resampling.BOX)
    scale = side / min(image.size)
    image = image.resize(
        (round(image.size[0] * scale), round(image.size[1] * scale)), resample=Image.Resampling.BICUBIC
    )
    pixels = np.array(image)
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    return pixels[top : top + side, left : left + side]


def pixels_of(source: ImageSource) -> np.ndarray:
    """uint8 (N, H, W, C)."""
    return source.pixels(range(len(source))).permute(0, 2, 3, 1).numpy()


ORDER = [0, 2, 4, 1, 3, 5]  # the files sorted by path: cats, then dogs


# --- one size for all


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("side", [8, 5, 14])
def test_images_of_any_size_are_cropped_as_adm_does(kind: str, side: int, tmp_path: Path) -> None:
    path = raw(tmp_path / "raw")
    source = load_data(str(zipped(path) if kind == "zip" else path), "train", resolution=side)
    assert source.shape == (3, side, side)
    assert np.array_equal(pixels_of(source), [adm_crop(photo(index, SIZES[index]), side) for index in ORDER])
    assert source.all_labels().tolist() == [0, 0, 0, 1, 1, 1]
    assert source.class_names == ("cat", "dog")


def test_an_image_of_the_right_size_stays_as_it_is(tmp_path: Path) -> None:
    same = raw(tmp_path / "same", [(8, 8)] * 4)
    np.savez(
        tmp_path / "same.npz", arr_0=[np.asarray(photo(index, (8, 8))) for index in (0, 2, 1, 3)], arr_1=[0, 0, 1, 1]
    )
    plain = load_data(str(same), "train")
    for path in (same, zipped(same), tmp_path / "same.npz"):
        source = load_data(str(path), "train", resolution=8)
        assert torch.equal(source.pixels(range(4)), plain.pixels(range(4)))
        assert source.digest() == plain.digest() == load_data(str(path), "train").digest()
    picture = photo(0, (8, 8))
    assert decode.centre_crop(picture, 8) is picture


def test_an_npz_of_larger_images_is_cropped(tmp_path: Path) -> None:
    wide = [photo(index, (20, 12)) for index in range(3)]
    np.savez(tmp_path / "wide.npz", arr_0=[np.asarray(image) for image in wide], arr_1=[2, 0, 1])
    source = load_data(str(tmp_path / "wide.npz"), "train", resolution=6)
    assert np.array_equal(pixels_of(source), [adm_crop(image, 6) for image in wide])
    assert source.all_labels().tolist() == [2, 0, 1]


def test_different_sizes_without_a_resolution(tmp_path: Path) -> None:
    sizes = [(8, 8), (8, 8), (8, 8), (9, 8), (8, 8), (8, 8)]
    source = load_data(str(raw(tmp_path / "raw", sizes)), "train")
    assert source.head(4).shape == (3, 8, 8)  # cats, one dog of the right size
    message = (
        r"raw: images of different sizes; dog/003\.png is not like the first \(9x8, not 8x8; 1 of {} differ\): make "
        r"them equal with `repa-eval prepare SRC DEST --resolution N`; align, probe and sweep take --resolution N"
    )
    for count, asked in (
        (6, lambda: source.head(6)),
        (3, lambda: source.part(3, 6)),
        (2, lambda: source.pixels([4, 5])),
    ):
        for _ in range(2):  # also when it is asked again
            with pytest.raises(UserError, match=message.format(count)):
                asked()


@pytest.mark.parametrize("coloured", [[], [5], [0], [3, 4]])
def test_images_are_grey_only_if_all_are(coloured: list[int], tmp_path: Path) -> None:
    """Also those of a view that holds only the grey ones, so that parts of one folder fit to each other."""
    (tmp_path / "a").mkdir()
    for index in range(6):
        photo(index, mode="RGB" if index in coloured else "L").save(tmp_path / "a" / f"{index}.png")
    for resolution in (None, 6):
        source = load_data(str(tmp_path / "a"), "train", resolution=resolution)
        assert source.part(1, 3).shape[0] == (3 if coloured else 1)
        found = source.part(1, 3).pixels([0, 1])[0].permute(1, 2, 0).numpy()
        if resolution is None:
            assert np.array_equal(found, np.asarray(photo(1, mode="L"))[..., None].repeat(3 if coloured else 1, -1))


# --- what is read, and when


class MeanColours(Teacher):
    """Patches are the colours of four quarters."""

    name, width, digest = "mean-colours", 3, "0" * 12

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tokens:
        return Tokens(nn.functional.adaptive_avg_pool2d(self.factor * images.float(), 2).flatten(2).mT)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """The images whose headers, and whose pixels, are read."""
    asked: dict[str, list[int]] = {"_header": [], "_pixels": []}
    for name, rows in asked.items():
        usual = getattr(ImageFiles, name)
        monkeypatch.setattr(
            ImageFiles, name, lambda self, row, rows=rows, usual=usual: (rows.append(row), usual(self, row))[1]
        )
    return asked


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_alignment_on_eight_of_many_images_reads_these_alone(
    kind: str, tmp_path: Path, read: dict[str, list[int]]
) -> None:
    (tmp_path / "raw").mkdir()
    for index in range(3000):
        file = tmp_path / "raw" / f"{index:05d}.png"
        if index < 20:
            file.write_bytes(encoded(photo(index, (10 + index, 12))))
        else:
            os.link(tmp_path / "raw" / f"{index % 20:05d}.png", file)
    path = zipped(tmp_path / "raw") if kind == "zip" else tmp_path / "raw"
    source = load_data(str(path), "train", resolution=8)
    assert len(source) == 3000
    assert read == {"_header": [], "_pixels": []}
    network = nn.Sequential(nn.Conv2d(3, 4, 4, 4))
    rows = re.align_module(network, MeanColours(), source, layers=["0"], num_images=8, metrics="cka")
    assert [row.n for row in rows] == [8]
    assert sorted(read["_header"]) == list(range(8))
    assert set(read["_pixels"]) == set(range(8))


def test_a_header_is_read_from_the_beginning_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any format; where the beginning does not say enough, the whole file is read."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 80, 3), dtype=np.uint8))
    profile, exif = b"\0" * 30_000, Image.Exif()
    exif[270] = "x" * 30_000
    files = {
        "a.png": (encoded(noise), True),
        "b.jpg": (encoded(noise, "JPEG", quality=95), True),
        "c.png": (encoded(noise, icc_profile=np.random.default_rng(0).bytes(30_000)), False),
        "d.jpg": (encoded(noise, "JPEG", icc_profile=profile, exif=exif), False),
        "e.bmp": (encoded(noise, "BMP"), False),
        "f.webp": (encoded(noise, "WEBP", lossless=True), False),
        "g.tif": (encoded(noise, "TIFF"), False),
        "h.gif": (encoded(noise, "GIF"), True),  # these two are smaller than what is read
        "i.png": (encoded(noise.resize((80, 90)).convert("1")), True),
    }
    (tmp_path / "s").mkdir()
    for name, (data, _) in files.items():
        (tmp_path / "s" / name).write_bytes(data)
    source = load_data(str(tmp_path / "s"), "train")
    whole = []
    usual = ImageFiles._read
    monkeypatch.setattr(
        ImageFiles,
        "_read",
        lambda self, row, most=decode.MAX_BYTES: (whole.append((row, most)), usual(self, row, most))[1],
    )
    assert source.shape == (3, 90, 80)
    source.survey(range(len(files)))
    again = {row for row, most in whole if most > pictures.HEAD}
    assert again == {row for row, (_, enough) in enumerate(files.values()) if not enough}
    assert max(len(data) for data, enough in files.values() if enough) > pictures.HEAD


def test_python_takes_images_by_path_and_as_objects(tmp_path: Path) -> None:
    pixels = digits("val").images[:24]
    for index, image in enumerate(pixels):
        place = tmp_path / "raw" / f"class{index // 12}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.kron(image[0], np.ones((2, 2), np.uint8))).save(place / f"{index:03d}.png")
    labels = np.arange(24) // 12
    np.savez(tmp_path / "a.npz", arr_0=pixels.transpose(0, 2, 3, 1), arr_1=labels)
    folder, archive = tmp_path / "raw", zipped(tmp_path / "raw")
    model = steps_of(tiny("repa"))[1].model
    ways: list[tuple[Any, dict[str, Any]]] = [
        (pixels, {}),
        (re.images(pixels, labels), {}),
        (tmp_path / "a.npz", {}),
        (folder, {"resolution": 8}),  # halving undoes the doubling
        (str(archive), {"resolution": 8}),
        (open_images(folder, resize=8), {}),
        (re.data.load(folder, "test", resolution=8), {}),
    ]
    found = [
        re.align(model, "digits-vit", images, layers=1, timesteps=0.1, metrics="cka", num_images=20, **more)
        for images, more in ways
    ]
    assert all(len(rows) == 1 and rows[0].n == 20 for rows in found)
    assert [rows[0].value for rows in found] == [found[0][0].value] * len(ways)


def test_what_is_damaged_beyond_the_used_images_does_not_matter(tmp_path: Path) -> None:
    folder = raw(tmp_path / "raw", [(8, 8)] * 12)
    (folder / "dog" / "011.png").write_bytes(b"nothing")
    (folder / "dog" / "009.png").write_bytes(b"nothing")
    assert len(load_data(str(folder), "train").head(10).pixels(range(10))) == 10
    with pytest.raises(Failure, match=r"dog/009\.png is not a readable image \(.*\); 2 of 12 images cannot be used"):
        load_data(str(folder), "train").head(12)
    (folder / "cat" / "002.png").write_bytes(encoded(photo(2, (8, 8)))[:-90])  # its header is whole
    source = load_data(str(folder), "train").head(6)
    with pytest.raises(
        Failure, match=r"cat/002\.png is not a readable image \(damaged.*\); 1 of 6 images cannot be used"
    ):
        source.pixels([0, 1])


def test_the_stored_pixels_count_whatever_exif_says_of_them(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # to be shown turned by 90 degrees
    (tmp_path / "s").mkdir()
    photo(0, (16, 8)).save(tmp_path / "s" / "0.png", exif=exif)
    assert np.array_equal(pixels_of(load_data(str(tmp_path / "s"), "train"))[0], np.asarray(photo(0, (16, 8))))
