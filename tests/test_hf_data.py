"""Data of the library `datasets`: rows, saved tables, streams and tars, the same images as files hold."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from repa_eval.data.readers import dataset_stream
from repa_eval.data.readers.dataset_rows import open_rows
from repa_eval.data.readers.dataset_stream import DatasetStream
from repa_eval.errors import Failure, UserError
from repa_eval.interfaces.image_source import ImageSource
from repa_eval.interfaces.images import held_out_split, load_data
from repa_eval.probes import splits

COUNT = 7
LABELS = [0, 0, 0, 0, 1, 1, 1]


def picture(index: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    width, height = size
    pixels = np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


PNGS = [encoded(picture(index)) for index in range(COUNT)]


def table(images: list[bytes] | None = None, labels: list[Any] | None = None, **columns: list[Any]) -> datasets.Dataset:
    """Encoded images, as the hub has them, with named classes."""
    images = PNGS if images is None else images
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    rows: dict[str, list[Any]] = {"image": [{"bytes": data, "path": None} for data in images], "label": LABELS}
    if labels is not None:
        features["label"] = datasets.Value("string" if isinstance(labels[0], str) else "int64")
        rows["label"] = labels
    for name, values in columns.items():
        features[name], rows[name] = datasets.Value("string"), values
    return datasets.Dataset.from_dict(
        {name: values[: len(images)] for name, values in rows.items()}, features=datasets.Features(features)
    )


def tar(path: Path, **texts: str) -> Path:
    with tarfile.open(path, "w") as archive:
        for index, data in enumerate(PNGS):
            members = {"png": data, "cls": str(LABELS[index]).encode()}
            for suffix, content in {**members, **{name: text.encode() for name, text in texts.items()}}.items():
                info = tarfile.TarInfo(f"{index:04d}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def folder(path: Path) -> Path:
    for index, data in enumerate(PNGS):
        (path / ("cat", "dog")[LABELS[index]]).mkdir(parents=True, exist_ok=True)
        (path / ("cat", "dog")[LABELS[index]] / f"{index}.png").write_bytes(data)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


# --- one content, many ways to store it


def in_folder(here: Path) -> str:
    return str(folder(here / "f"))


def in_zip(here: Path) -> str:
    with zipfile.ZipFile(here / "f.zip", "w") as archive:
        for file in sorted(folder(here / "f").rglob("*.png")):
            archive.write(file, file.relative_to(here / "f"))
    return str(here / "f.zip")


def in_npz(here: Path) -> str:
    np.savez(here / "f.npz", arr_0=[np.asarray(picture(index)) for index in range(COUNT)], arr_1=LABELS)
    return str(here / "f.npz")


def saved(here: Path) -> str:
    table().save_to_disk(here / "saved")
    return str(here / "saved")


def saved_splits(here: Path) -> str:
    datasets.DatasetDict(train=table(), test=table()).save_to_disk(here / "splits")
    return str(here / "splits")


def in_tar(here: Path) -> str:
    return str(tar(here / "a.tar"))


def in_tars(here: Path) -> str:
    (here / "tars").mkdir()
    tar(here / "tars" / "a.tar")
    return str(here / "tars")


FORMS: dict[str, tuple[Callable[[Path], str], str]] = {
    "folder": (in_folder, "folder:"),
    "zip": (in_zip, "folder:"),
    "npz": (in_npz, ""),
    "saved": (saved, "hf:"),
    "saved with splits": (saved_splits, "hf:"),
    "tar": (in_tar, "hf:"),
    "folder of tars": (in_tars, "hf:"),
}


def content(source: ImageSource) -> tuple[np.ndarray, list[int]]:
    rows = range(COUNT)
    return source.pixels(rows).permute(0, 2, 3, 1).numpy(), source.all_labels().tolist()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("resolution", [None, 4])
def test_the_same_values_from_every_form(form: str, resolution: int | None, tmp_path: Path) -> None:
    make, kind = FORMS[form]
    path = make(tmp_path)
    expected = np.stack([np.asarray(picture(index)) for index in range(COUNT)])
    if resolution == 4:  # halved by a box, first in x and then in y, half up as Pillow rounds
        expected = (expected.reshape(COUNT, 8, 4, 2, 3).sum(3) + 1) // 2
        expected = ((expected.reshape(COUNT, 4, 2, 4, 3).sum(2) + 1) // 2).astype(np.uint8)
    names = {path: f"{kind}{path}"} | ({f"hf-stream:{path}": f"hf-stream:{path}"} if kind == "hf:" else {})
    digests = set()
    for spec, name in names.items():
        source = load_data(spec, "train", resolution=resolution)
        pixels, labels = content(source)
        assert source.name == name
        assert np.array_equal(pixels, expected)
        assert labels == LABELS
        assert source.num_classes == 2
        digests.add(source.head(COUNT).digest())
    plain = datasets.Dataset.from_dict({"image": expected, "label": LABELS}).cast_column(
        "image", datasets.Array3D(expected.shape[1:], "uint8")
    )
    assert digests == {open_rows(plain, name="x", split="train").digest()}


def test_images_of_any_size_and_mode_become_one(tmp_path: Path) -> None:
    odd = [encoded(picture(0, (20, 9), "L")), encoded(picture(1, (9, 9), "P")), encoded(picture(2, (30, 31)), "WEBP")]
    for name in ("a", "b", "c"):
        (tmp_path / "f").mkdir(exist_ok=True)
        (tmp_path / "f" / f"{name}.png").write_bytes(odd["abc".index(name)])
    files = load_data(str(tmp_path / "f"), "train", resolution=8).pixels(range(3))
    rows = open_rows(table(odd), name="hf:mine", split="train", resize=8)
    assert rows.shape == (3, 8, 8)
    assert torch.equal(rows.pixels(range(3)), files)
    turned = [odd[2], odd[0], odd[1]]  # a stream goes by its first image
    stream = DatasetStream(table(turned).to_iterable_dataset(), name="hf-stream:mine", split="train", resize=8)
    assert torch.equal(stream.pixels([1, 2, 0]), files)


def test_the_stored_pixels_count_whatever_exif_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    data = encoded(picture(0, (8, 4)), exif=exif)
    for source in (
        open_rows(table([data]), name="x", split="train"),
        DatasetStream(table([data]).to_iterable_dataset(), name="x", split="train"),
    ):
        assert np.array_equal(source.pixels([0])[0].permute(1, 2, 0), np.asarray(picture(0, (8, 4))))


@pytest.mark.parametrize("image", ["image", "img", "jpg", "png", "webp", "photo"])
@pytest.mark.parametrize(
    ("label", "caption"), [("label", "text"), ("labels", "caption"), ("cls", "txt"), ("fine_label", None)]
)
def test_columns_by_their_usual_names(image: str, label: str, caption: str | None) -> None:
    named = table(caption=[f"picture {index}" for index in range(COUNT)])
    named = named.rename_columns({"image": image, "label": label, "caption": caption or "other"})
    for source in (
        open_rows(named, name="x", split="train"),
        DatasetStream(named.to_iterable_dataset(), name="x", split="train"),
    ):
        samples = source.fetch([5, 1], ("labels", "captions", "images"))
        assert samples.labels is not None
        assert samples.labels.tolist() == [1, 0]
        assert samples.captions == (("picture 5", "picture 1") if caption else None)
        assert np.array_equal(samples.pixels[0].permute(1, 2, 0), np.asarray(picture(5)))
        assert source.class_names == ("cat", "dog")


@pytest.mark.parametrize("labels", [["a"] * COUNT, [-1] * COUNT, [1 << 30] * COUNT])
def test_labels_that_are_none_are_not_given(labels: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    for source in (
        open_rows(table(labels=labels), name="hf:x", split="test"),
        DatasetStream(table(labels=labels).to_iterable_dataset(), name="hf:x", split="test"),
    ):
        assert source.gives == {"images"}
        assert source.num_classes == 1
        assert source.fetch([0]).labels is None
        assert "data hf:x: the column label holds " in caplog.messages[-1]
        with pytest.raises(UserError, match="has no labels"):
            source.all_labels()


def test_whole_numbers_are_classes() -> None:
    numbers = [0, 4, 2, 0, 1, 1, 1]
    for source in (
        open_rows(table(labels=numbers), name="x", split="train"),
        DatasetStream(table(labels=numbers).to_iterable_dataset(), name="x", split="train").head(COUNT),
    ):
        assert source.num_classes == 5
        assert source.all_labels().tolist() == numbers


# --- splits


def test_splits_by_their_names(tmp_path: Path) -> None:
    parts = {"train": table(), "validation": table(PNGS[:3]), "test": table(PNGS[:2])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "s")
    for kind in ("", "hf-stream:"):
        spec = f"{kind}{tmp_path / 's'}"
        for split in ("train", "reference", "val", "validation", "test", held_out_split(spec)):
            source = load_data(spec, split)
            name = {"reference": "train", "val": "validation", "held-out": "test"}.get(split, split)
            assert (len(source), source.split, source.split_known) == (len(parts[name]), name, True)
        with pytest.raises(UserError, match=r"has no split 'tets'; choose one of train, validation, test$"):
            load_data(f"{kind}{tmp_path / 's'}", "tets")


def test_held_out_images_without_a_test_split(tmp_path: Path) -> None:
    datasets.DatasetDict(train=table(), validation=table(PNGS[:3])).save_to_disk(tmp_path / "s")
    spec = str(tmp_path / "s")
    assert load_data(spec, held_out_split(spec)).split == "validation"
    with pytest.raises(UserError, match=r"has no split 'test'; choose one of train, validation$"):
        load_data(spec, "test")
    datasets.DatasetDict(train=table()).save_to_disk(tmp_path / "t")
    with pytest.raises(UserError, match=r"has no split of held-out images; choose one of train$"):
        load_data(str(tmp_path / "t"), held_out_split(spec))


def test_a_table_without_splits_and_one_that_knows_its_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = load_data(saved(tmp_path), "test")
    assert (source.split, source.split_known) == ("all", False)
    assert "has no splits" in caplog.text
    known = table()
    known._split = datasets.Split.TRAIN
    known.save_to_disk(tmp_path / "known")
    assert load_data(str(tmp_path / "known"), "train").split_known
    with pytest.raises(UserError, match=r"known has no split 'test'; choose one of train$"):
        load_data(str(tmp_path / "known"), "test")


@pytest.mark.parametrize("names", ["train validation test", "train test", "train validation"])
@pytest.mark.parametrize("mixed", [True, False])
def test_probes_of_data_with_some_splits(
    names: str, mixed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of sets that are sorted by class, of which the first images are of one class."""
    monkeypatch.setattr(splits, "PROBE_TRAIN", 20)
    parts = datasets.DatasetDict()
    for place, name in enumerate(names.split()):
        images = [encoded(picture(100 * place + index)) for index in range(50)]
        parts[name] = table(images, [index % 2 if mixed else index // 25 for index in range(50)])
    parts.save_to_disk(tmp_path / "s")
    found = splits.probe_splits(str(tmp_path / "s"))
    train, val, test = found.train.all_labels(), found.val.all_labels(), found.test.all_labels()
    assert (len(train), found.train.split) == (20, "train")
    assert found.test.split == names.split()[-1]
    assert found.val.split == ("validation" if len(names.split()) == 3 else "train")
    assert (len(test), test.mean()) == (50, 0.5)
    assert 0.3 < train.mean() < 0.7
    if mixed and len(names.split()) == 3:
        assert found.train.digest() == load_data(str(tmp_path / "s"), "train").head(20).digest()
    images = {part.digest() for index in range(20) for part in [found.train.take([index])]}
    assert not images & {found.val.take([index]).digest() for index in range(len(val))}


def test_folders_that_the_library_reads(tmp_path: Path) -> None:
    source = load_data(f"hf:{folder(tmp_path / 'f')}", "train")
    pixels, labels = content(source)
    assert np.array_equal(pixels, [np.asarray(picture(index)) for index in range(COUNT)])
    assert (labels, source.class_names) == (LABELS, ("cat", "dog"))
    with pytest.raises(UserError, match=r"has no split 'test'; choose one of train$"):
        load_data(f"hf:{tmp_path / 'f'}", "test")
    stream = load_data(f"hf-stream:{tmp_path / 'f'}", "train")
    assert stream.head(COUNT).digest() == source.digest()


# --- streams


class Counted:
    """A stream of numbered rows that says which of them were read."""

    def __init__(self, count: int) -> None:
        self.read: list[int] = []
        self.dataset = datasets.IterableDataset.from_generator(
            self._rows, gen_kwargs={"count": count}, features=table().features
        )

    def _rows(self, count: int) -> Iterator[dict[str, Any]]:
        for index in range(count):
            self.read.append(index)
            yield {"image": {"bytes": PNGS[index % COUNT], "path": None}, "label": index % 2}

    def __reduce__(self) -> tuple[Any, ...]:  # the library hashes it
        return Counted, (0,)


def test_a_stream_is_read_forwards_and_again_only_for_what_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(40)
    source = DatasetStream(counted.dataset, name="s", split="train")
    view = source.head(30)
    assert len(view) == 30
    for rows in ([0, 1, 2], [5, 3], [12], [4]):
        assert np.array_equal(view.pixels(rows)[0].permute(1, 2, 0), np.asarray(picture(rows[0] % COUNT)))
    assert counted.read == list(range(13)), "held rows are not read again"
    monkeypatch.setattr(dataset_stream, "HELD", 3 * max(map(len, PNGS)))
    view.pixels([13])
    assert len(source._rows()._held) <= 4
    counted.read.clear()
    view.pixels([14, 2])
    assert counted.read == [*range(3), *range(3, 15)]
    assert len(source) == 40
    assert source.all_labels().tolist() == [0, 1] * 20


def test_a_stream_that_ends_early() -> None:
    counted = Counted(5)
    view = DatasetStream(counted.dataset, name="hf-stream:s", split="train").head(8)
    assert len(view.pixels(range(5))) == 5
    with pytest.raises(UserError, match=r"data hf-stream:s ends after 5 images; image 5 \(counted from 0\) was"):
        view.pixels(range(8))


def test_a_stream_goes_to_other_processes() -> None:
    source = DatasetStream(table().to_iterable_dataset(), name="s", split="train", count=COUNT)
    source.pixels([3])
    again = pickle.loads(pickle.dumps(source))
    assert torch.equal(again.pixels([1, 2]), source.pixels([1, 2]))


# --- what cannot be used


def rgba(alpha: int) -> bytes:
    image = picture(0).convert("RGBA")
    image.putalpha(alpha)
    return encoded(image)


BAD: dict[str, tuple[bytes, str, type[UserError]]] = {
    "no image": (b"nothing", "image 1 is not a readable image (no known format)", Failure),
    "empty": (b"", "image 1 is missing: the row holds no image", Failure),
    "cut off": (PNGS[0][:90], "image 1 is not a readable image (damaged or cut off)", Failure),
    "another size": (encoded(picture(0, (9, 8))), "image 1 is not like the first (9x8, not 8x8", UserError),
    "transparent": (rgba(90), "image 1 is transparent in places", UserError),
    "CMYK": (encoded(picture(0).convert("CMYK"), "JPEG"), "image 1 is CMYK", UserError),
    "16 bits": (encoded(Image.new("I;16", (8, 8))), "image 1 has more than 8 bits", UserError),
    "animated": (encoded(picture(0), save_all=True, append_images=[picture(1)]), "image 1 is animated", UserError),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_images_are_one_line(what: str) -> None:
    data, text, kind = BAD[what]
    images = [PNGS[0], data, *PNGS[2:]]
    for source in (
        open_rows(table(images), name="hf:bad", split="train"),
        DatasetStream(table(images).to_iterable_dataset(), name="hf:bad", split="train"),
    ):
        assert len(source.pixels([0, 2])) == 2, "an image that is not used does not matter"
        with pytest.raises(UserError) as caught:
            source.pixels([0, 1])
        assert type(caught.value) is kind
        assert text in str(caught.value)
        assert str(caught.value).startswith("hf:bad: ")
        assert "\n" not in str(caught.value)


def test_a_table_opens_no_file_elsewhere(tmp_path: Path) -> None:
    root = f"{tmp_path}/data/"
    for name in ("data/own.png", "data2/other.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(PNGS[3])
    for path, allowed in {
        f"{root}own.png": True,
        f"{tmp_path}/data2/other.png": False,
        f"{root}../data2/other.png": False,
        "https://example.org/own.png": False,
        f"zip://own.png::{tmp_path}/data2/a.zip": False,
    }.items():
        rows = [{"bytes": PNGS[0], "path": "a.png"}, {"bytes": None, "path": path}]
        named = datasets.Dataset.from_dict({"image": rows, "label": [0, 1]}, features=table().features)
        for source in (
            open_rows(named, name="hf:x", split="train", roots=[root]),
            DatasetStream(named.to_iterable_dataset(), name="hf:x", split="train", roots=[root]),
        ):
            if allowed:
                assert np.array_equal(source.pixels([1])[0].permute(1, 2, 0), np.asarray(picture(3)))
                continue
            with pytest.raises(UserError, match=r"image 1 is not in the table, which names '.*', and that is no"):
                source.pixels([0, 1])


def test_a_stream_whose_first_image_is_grey() -> None:
    rows = table([encoded(picture(0, mode="L")), PNGS[1]])
    assert open_rows(rows, name="x", split="train").shape[0] == 3
    with pytest.raises(UserError, match=r"image 1 has colours, and the first image is grey; hf:NAME reads such data"):
        DatasetStream(rows.to_iterable_dataset(), name="x", split="train").pixels([0, 1])


@pytest.mark.parametrize("damage", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow", "tar"])
def test_damaged_tables_are_one_line(damage: str, tmp_path: Path) -> None:
    path = Path(in_tar(tmp_path) if damage == "tar" else saved(tmp_path))
    (path if damage == "tar" else path / damage).write_bytes(b"{ nothing")
    with pytest.raises(Failure, match=r"cannot load data hf:|state.json is damaged: ") as caught:
        load_data(str(path), "train")
    assert "\n" not in str(caught.value)


def test_training_from_a_stream_is_refused(tmp_path: Path) -> None:
    from helpers import run, tiny

    with pytest.raises(UserError, match="is read in order, and training shuffles it; use hf:NAME instead"):
        run(tiny("vanilla", data=f"hf-stream:{saved(tmp_path)}", split="train"), tmp_path / "run")
