"""The embedded digits, `datasets`, and images in files."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from helpers import digits
from repa_eval.data import digits as embedded
from repa_eval.data.readers import image_files as files
from repa_eval.data.readers.dataset_rows import open_rows
from repa_eval.errors import Failure, UserError
from repa_eval.interfaces.images import Images, in_memory, load_data, to_signed

GREY = np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)


# --- digits


def test_splits_are_disjoint_and_complete() -> None:
    from sklearn.datasets import load_digits

    splits = {name: digits(name) for name in ("trainval", "val", "test")}
    assert [len(splits[name]) for name in ("trainval", "val", "test")] == [1437, 240, 360]
    train = splits["trainval"].part(0, 1197)
    assert np.array_equal(splits["trainval"].images[1197:], splits["val"].images)
    rows = np.concatenate([train.images, splits["val"].images, splits["test"].images]).reshape(1797, 64)
    labels = np.concatenate([train.labels, splits["val"].labels, splits["test"].labels])
    original = load_digits()
    scaled = np.round(original.images * 15.9375).astype(np.uint8).reshape(1797, 64)
    order = np.random.RandomState(0).permutation(1797)
    assert np.array_equal(rows, scaled[order])
    assert np.array_equal(labels, original.target[order])


def test_sizes_and_ranges() -> None:
    for split, size in {"train": 12_000, "reference": 4_000, "test-large": 12_000}.items():
        images = digits(split)
        assert len(images) == size
        assert images.shape == (1, 8, 8)
        assert images.images.dtype == np.uint8
        assert images.labels.dtype == np.int64
        assert images.num_classes == 10
        assert images.class_names == tuple("0123456789")
        assert images.images.max() > 240
        assert images.images.min() == 0


def test_the_reference_is_the_head_of_the_pool() -> None:
    assert np.array_equal(digits("reference").images, digits("train").images[:4000])
    assert np.array_equal(digits("reference").labels, digits("train").labels[:4000])


def test_the_pool_augments_training_digits_alone() -> None:
    pool, plain = digits("train"), digits("trainval").part(0, 1197)
    assert np.array_equal(pool.labels, plain.labels[np.arange(12_000) % 1197])
    moved = np.abs(pool.images[:1197].astype(int) - plain.images).mean()
    other = np.abs(pool.images[:1197].astype(int) - np.roll(plain.images, 1, axis=0)).mean()
    assert 10 < moved < 0.6 * other  # the same digit, slightly moved
    assert len(np.unique(pool.images.reshape(12_000, -1), axis=0)) > 11_990


def test_the_large_test_split_begins_with_the_untouched_digits() -> None:
    large, test = digits("test-large"), digits("test")
    assert np.array_equal(large.images[:360], test.images)
    assert np.array_equal(large.labels[360:], test.labels[np.arange(11_640) % 360])


def test_the_content_is_fixed() -> None:
    assert {name: digits(name).digest() for name in ("val", "test", "trainval")} == {
        "val": "65722000a18b",
        "test": "49acf73527af",
        "trainval": "639aad4eda92",
    }
    before = digits("train").digest()
    torch.manual_seed(5)
    again, labels = embedded._arrays("train")
    assert Images("digits", "train", again[:, None], labels, 10).digest() == before


def test_the_dataset_shows_the_same() -> None:
    dataset = embedded.as_dataset("val")
    assert isinstance(dataset, datasets.Dataset)
    assert dataset.column_names == ["image", "label"]
    images = digits("val")
    assert np.array_equal(np.stack([np.asarray(row["image"]) for row in dataset]), images.images[:, 0])
    assert [int(row["label"]) for row in dataset] == images.labels.tolist()
    assert dataset.features["label"].names == list("0123456789")


def test_errors_of_digits() -> None:
    with pytest.raises(UserError, match=r"data digits has no split 'tets'; choose one of train, reference, val, test"):
        load_data("digits", "tets")
    with pytest.raises(UserError, match="takes no name after the colon"):
        load_data("digits:8", "train")
    with pytest.raises(UserError, match="unknown data 'digit'; did you mean 'digits'"):
        load_data("digit", "train")


# --- Images


def test_fetch_head_part_digest() -> None:
    images = digits("val")
    samples = images.fetch([3, 1, 3])
    pixels, labels = samples.pixels, samples.labels
    assert pixels.shape == (3, 1, 8, 8)
    assert torch.equal(pixels[0], pixels[2])
    assert labels.tolist() == images.labels[[3, 1, 3]].tolist()
    assert len(images.head(240)) == 240
    with pytest.raises(UserError, match="digits:val has 240 images; 241 were asked for"):
        images.head(241)
    digests = {images.digest(), images.head(239).digest(), images.part(1, 240).digest()}
    relabelled = Images("digits", "val", images.images, images.labels[::-1].copy(), 10)
    assert len(digests | {relabelled.digest()}) == 4


def test_signed() -> None:
    assert to_signed(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]


# --- datasets


def test_any_dataset_with_images() -> None:
    named = datasets.Dataset.from_dict(
        {"img": [Image.fromarray(pixels) for pixels in COLOUR], "labels": [0, 1, 2, 0, 1, 2]},
        features=datasets.Features({"img": datasets.Image(), "labels": datasets.ClassLabel(names=["a", "b", "c"])}),
    )
    images = open_rows(named, name="hf:mine", split="train")
    assert np.array_equal(in_memory(images).images, COLOUR.transpose(0, 3, 1, 2))
    assert (images.num_classes, images.class_names, images.labels.tolist()) == (3, ("a", "b", "c"), [0, 1, 2, 0, 1, 2])
    bare = datasets.Dataset.from_dict({"image": [Image.fromarray(pixels) for pixels in GREY]})
    images = open_rows(bare.cast_column("image", datasets.Image()), name="hf:mine", split="train")
    assert np.array_equal(in_memory(images).images, GREY[:, None])
    assert images.num_classes == 1


def test_a_dataset_without_images() -> None:
    with pytest.raises(UserError, match=r"data hf:mine: no column 'image' \(columns: label, text\)"):
        open_rows(datasets.Dataset.from_dict({"text": ["a"], "label": [0]}), name="hf:mine", split="train")


def test_hf_without_a_name_and_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="data 'hf' needs a name: hf:NAME"):
        load_data("hf", "train")

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(Failure, match=r"cannot load data hf:nobody/nothing: no route; without a network"):
        load_data("hf:nobody/nothing", "val")


def test_hf_with_a_script_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hfset").mkdir()
    (tmp_path / "hfset" / "hfset.py").write_text("open('ran', 'w').close()")
    with pytest.raises(Failure, match=r"^cannot load data hf:hfset: ") as caught:
        load_data("hf:hfset", "train")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


# --- files


def write_folder(folder: Path, pixels: np.ndarray, *, classes: int = 1) -> Path:
    for index, image in enumerate(pixels):
        place = folder / (f"class{index % classes}" if classes > 1 else "")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{index:03d}.png")
    return folder


def test_a_flat_folder(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", GREY)
    (folder / "readme.txt").touch()
    (folder / ".hidden.png").touch()
    source = files.open_images(folder)
    assert len(source) == 6
    samples = source.fetch([4, 0])
    pixels, labels = samples.pixels, samples.labels
    assert np.array_equal(pixels.numpy(), GREY[[4, 0], None])
    assert labels.tolist() == [0, 0]


def test_a_folder_per_class(tmp_path: Path) -> None:
    source = files.open_images(write_folder(tmp_path / "a", COLOUR, classes=2))
    assert source.class_names == ("class0", "class1")
    samples = source.fetch(range(6))
    pixels, labels = samples.pixels, samples.labels
    order = [0, 2, 4, 1, 3, 5]  # sorted by path
    assert np.array_equal(pixels.numpy(), COLOUR[order].transpose(0, 3, 1, 2))
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    loaded = load_data(f"folder:{tmp_path / 'a'}", "train")
    assert (loaded.num_classes, loaded.class_names) == (2, ("class0", "class1"))
    assert np.array_equal(loaded.pixels(range(6)).numpy(), pixels.numpy())


def test_a_zip_is_the_same_as_its_folder(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", COLOUR, classes=2)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in sorted(folder.rglob("*.png"), reverse=True):
            archive.write(file, file.relative_to(folder).as_posix())
    a, b = files.open_images(folder), files.open_images(tmp_path / "a.zip")
    assert a.digest() == b.digest()
    assert torch.equal(a.pixels(range(6)), b.pixels(range(6)))
    assert torch.equal(a.fetch(range(6)).labels, b.fetch(range(6)).labels)


def test_the_digest_sees_names_and_bytes(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", GREY)
    before = files.open_images(folder).digest()
    (folder / "000.png").rename(folder / "999.png")
    renamed = files.open_images(folder).digest()
    Image.fromarray(GREY[1]).save(folder / "999.png")
    assert len({before, renamed, files.open_images(folder).digest()}) == 3


def test_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", arr_0=COLOUR, arr_1=np.array([0, 1, 2, 0, 1, 7]))
    images = files.open_images(tmp_path / "a.npz")
    assert np.array_equal(in_memory(images).images, COLOUR.transpose(0, 3, 1, 2))
    assert images.num_classes == 8
    np.savez(tmp_path / "b.npz", arr_0=COLOUR)
    assert files.open_images(tmp_path / "b.npz").labels.tolist() == [0] * 6
    assert load_data(f"folder:{tmp_path / 'a.npz'}", "train").num_classes == 8


def test_an_npz_that_asks_to_run_code_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", arr_0=np.array([{"a": 1}], dtype=object))
    with pytest.raises(Failure, match=r"a\.npz cannot be read"):
        files.open_images(tmp_path / "a.npz")


def test_a_truncated_image(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", GREY)
    file = folder / "003.png"
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(Failure, match=r"003\.png is not a readable image"):
        files.open_images(folder).fetch(range(6))


def test_a_truncated_archive(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, arr_0=COLOUR)
    for name, content in {"a.npz": buffer.getvalue()[:200], "b.zip": b"PK\x03\x04 and no more", "c.npz": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Failure, match=f"{name} cannot be read"):
            files.open_images(tmp_path / name)
