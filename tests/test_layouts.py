"""Official latents in every layout: the same samples in the same order, and one line for what cannot be used.

`WRITE_DOCS=1 python -m pytest tests/test_layouts.py` appends the lines to docs/data.md.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import layout_files as made
import numpy as np
import pytest
import torch
from layout_files import CLASS_TOKENS, DEVIATIONS, FEATURES, LABELS, MEANS, MOMENTS, PIXELS, TEXTS, N

from repa_eval.data.readers.moment_members import MomentMembers
from repa_eval.data.readers.repa_layout import is_repa
from repa_eval.errors import UserError
from repa_eval.features.model_input import model_input
from repa_eval.interfaces.image_source import ImageSource, LatentScale
from repa_eval.interfaces.images import DATA, find_layout, load_data
from repa_eval.runtime.seeding import generators

DOCS = Path(__file__).resolve().parent.parent / "docs" / "data.md"
IMAGES = PIXELS.transpose(0, 3, 1, 2)
WHOLE = {"images": IMAGES, "moments": MOMENTS, "labels": LABELS}
STATISTICS = LatentScale(scale=(1 / 2, 1 / 3, 1 / 4, 1 / 5), shift=(0.0, 0.5, 1.0, 1.5))
SD = LatentScale(scale=(0.18215,), shift=(0.0,))


def pair(path: Path, processes: int) -> str:
    images = made.repa(path / "data") / "images"
    return f"pair:{images}+{made.lightning(path / 'latents', processes=processes)}"


# what makes the files and returns what to open; the values of each kind
FORMS: dict[str, tuple[Callable[[Path], Path | str], dict[str, Any], str]] = {
    "repa": (made.repa, WHOLE, "repa"),
    "repa zips": (made.repa_zips, WHOLE, "repa"),
    "repa compressed": (lambda path: made.repa_zips(path, method=zipfile.ZIP_DEFLATED), WHOLE, "repa"),
    "repa one zip": (lambda path: made.in_one_zip(path, made.repa), WHOLE, "repa"),
    "repa forced": (lambda path: f"repa:{made.repa(path)}", WHOLE, "repa"),
    "images": (lambda path: made.repa(path) / "images", {"images": IMAGES, "labels": LABELS}, "repa"),
    "images.zip": (lambda path: made.repa_zips(path) / "images.zip", {"images": IMAGES, "labels": LABELS}, "repa"),
    "vae-sd": (lambda path: made.repa(path) / "vae-sd", {"moments": MOMENTS, "labels": LABELS}, "repa"),
    "vae-sd.zip": (lambda path: made.repa_zips(path) / "vae-sd.zip", {"moments": MOMENTS, "labels": LABELS}, "repa"),
    "no labels": (
        lambda path: made.repa(path, labels=None),
        {"images": IMAGES, "moments": MOMENTS},
        "repa",
    ),
    "lightning": (made.lightning, {"latents": MEANS, "labels": LABELS}, "shards"),
    "erw": (made.erw, {"latents": MEANS, "labels": LABELS, "features": FEATURES}, "shards"),
    "gmem": (
        made.gmem,
        {"latents": MEANS, "labels": LABELS, "features": FEATURES, "class_tokens": CLASS_TOKENS},
        "shards",
    ),
    "one shard": (
        lambda path: made.lightning(path) / "latents_rank00_shard000.safetensors",
        {"latents": MEANS[:3], "labels": LABELS[:3]},
        "shards",
    ),
    "pair": (lambda path: pair(path, 1), {"images": IMAGES, "latents": MEANS, "labels": LABELS}, "pair"),
    "pair of three processes": (
        lambda path: pair(path, 3),
        {"images": IMAGES, "latents": MEANS, "labels": LABELS},
        "pair",
    ),
    "coco": (made.coco, {"images": IMAGES, "moments": MOMENTS, "text": TEXTS}, "coco"),
    "coco zip": (
        lambda path: made.in_one_zip(path, made.coco),
        {"images": IMAGES, "moments": MOMENTS, "text": TEXTS},
        "coco",
    ),
    "coco latents": (lambda path: made.coco(path, images=False), {"moments": MOMENTS, "text": TEXTS}, "coco"),
    "coco val": (
        lambda path: made.coco(path) / "val",
        {"images": IMAGES, "moments": MOMENTS, "text": TEXTS},
        "coco",
    ),
}


WITH_SPLITS = ("coco", "coco zip", "coco latents")


def opened(form: str, path: Path, split: str = "val") -> ImageSource:
    return load_data(str(FORMS[form][0](path / "it")), split)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_samples(form: str, tmp_path: Path) -> None:
    make, values, layout = FORMS[form]
    spec = str(make(tmp_path / "it"))
    assert find_layout(spec)[0] is DATA.get(layout)
    source = load_data(spec, "val")
    count = len(next(iter(values.values())))
    assert len(source) == count
    assert source.gives == set(values)
    assert (source.split, source.split_known) == (("val", True) if form in WITH_SPLITS else ("all", False))
    assert source.feature_width == (5 if "features" in values else None)
    assert source.num_classes == (int(values["labels"].max()) + 1 if "labels" in values else 1)
    for rows in (range(count), [2, 0, 2, 1], [], [count - 1]):
        samples = source.fetch(rows, sorted(values))
        for kind, wanted in values.items():
            got = getattr(samples, kind).numpy()
            assert got.dtype == wanted.dtype
            np.testing.assert_allclose(got, wanted[list(rows)], rtol=1e-6)
    for kind in values:  # nothing but what was asked for need be read, and labels are not invented
        assert getattr(source.fetch([1], (kind,)), kind) is not None
    assert (source.fetch([0], ("images", "moments", "labels")).labels is None) == ("labels" not in values)
    if "labels" in values:
        assert source.all_labels().tolist() == values["labels"].tolist()
    if "images" in values:
        assert source.shape == (3, 16, 16)
    if "images" not in values or "moments" in values or "latents" in values:
        assert source.latent_shape == (4, 2, 2)


def test_equal_content_has_one_digest(tmp_path: Path) -> None:
    digests = {form: opened(form, tmp_path / form).digest() for form in ("repa", "repa zips", "repa one zip")}
    assert len(set(digests.values())) == 1
    halves = {opened(form, tmp_path / form).digest() for form in ("images", "vae-sd", "no labels")}
    assert len(halves | set(digests.values())) == 4
    assert opened("images", tmp_path / "x").digest() == opened("images.zip", tmp_path / "y").digest()
    assert opened("pair", tmp_path / "p1").digest() == opened("pair of three processes", tmp_path / "p3").digest()
    part = opened("repa", tmp_path / "part").head(3)
    assert part.digest() == opened("repa zips", tmp_path / "zips").head(3).digest() != digests["repa"]


@pytest.mark.parametrize(
    ("form", "scale"),
    [
        ("repa", SD),
        ("vae-sd.zip", SD),
        ("coco", SD),
        ("lightning", STATISTICS),
        ("pair", STATISTICS),
        ("erw", SD),
    ],
)
def test_latents_are_read_as_their_models_do(form: str, scale: LatentScale, tmp_path: Path) -> None:
    source = opened(form, tmp_path)
    got = source.latent_scale
    np.testing.assert_allclose(got.scale, scale.scale)
    np.testing.assert_allclose(got.shift, scale.shift)
    reads = model_input(source, (4, 2, 2))
    rows = [0, 4]
    x = reads(source.fetch(rows, (reads.kind,)), generators(0, "x", rows)).numpy()
    if "latents" in source.gives:
        mean, std = (np.array(values).reshape(-1, 1, 1) for values in ((0, 0.5, 1, 1.5), (2, 3, 4, 5)))
        wanted = 0.18215 * MEANS[rows] if form == "erw" else (MEANS[rows] - mean) / std
    else:
        eps = np.stack([torch.randn(4, 2, 2, generator=each).numpy() for each in generators(0, "x", rows)])
        wanted = (MEANS[rows] + DEVIATIONS[rows] * eps) * 0.18215
    np.testing.assert_allclose(x, wanted, rtol=1e-5, atol=1e-6)


def test_a_folder_called_as_a_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("shards:", "shards"):
        with pytest.raises(UserError, match="data 'shards' needs a name: shards:NAME, where NAME may be a path"):
            load_data(name, "train")
    made.repa(Path("shards"))
    assert load_data("shards", "train").name == "repa:shards"
    with pytest.raises(UserError, match=r"shards: no \.safetensors files"):
        load_data("shards:shards", "train")


def test_a_pair_says_once_that_it_has_no_splits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened("pair", tmp_path, "test")
    assert [message.partition(":")[0] for message in caplog.messages] == ["pair"]


def test_names_of_classes(tmp_path: Path) -> None:
    names = [f"class {index}" for index in range(9)]
    path = made.repa(tmp_path / "named")
    listing = json.loads((path / "vae-sd" / "dataset.json").read_text())
    (path / "vae-sd" / "dataset.json").write_text(json.dumps({**listing, "class_names": names}))
    source = load_data(str(path), "test")
    assert source.class_names == tuple(names)
    assert source.num_classes == 9  # although the last three have no sample


def test_mirrored_samples_stand_apart(tmp_path: Path) -> None:
    plain = opened("gmem", tmp_path)
    other = plain.mirrored
    assert other is not None
    assert other.mirrored is None
    found = other.fetch([6, 2], ("latents", "features", "class_tokens", "labels"))
    np.testing.assert_array_equal(found.latents, -MEANS[[6, 2]])
    np.testing.assert_array_equal(found.features, -FEATURES[[6, 2]])
    np.testing.assert_array_equal(found.class_tokens, -CLASS_TOKENS[[6, 2]])
    assert found.labels.tolist() == LABELS[[6, 2]].tolist()
    assert other.digest() != plain.digest()
    assert opened("lightning", tmp_path / "l").mirrored.gives == {"latents", "labels"}
    assert opened("erw", tmp_path / "e").mirrored is None


def test_images_can_be_resized_and_latents_cannot(tmp_path: Path) -> None:
    path = made.repa(tmp_path / "it")
    assert load_data(str(path / "images"), "test", resolution=8).fetch([0, 1]).pixels.shape == (2, 3, 8, 8)
    assert load_data(str(path), "test", resolution=16).fetch([0], ("images",)).pixels.numpy().tolist() == [
        IMAGES[0].tolist()
    ]
    with pytest.raises(UserError, match=r"the latents are of images of 16x16, and stay so; leave --resolution 8 out"):
        load_data(str(path), "test", resolution=8)
    with pytest.raises(UserError, match="the latents are of images, and stay so"):
        load_data(str(path / "vae-sd"), "test", resolution=16)


@pytest.mark.parametrize("form", ["repa zips", "repa compressed", "lightning", "coco zip"])
def test_handles_outlive_forks_threads_and_pickles(form: str, tmp_path: Path) -> None:
    source = opened(form, tmp_path)
    kind = "latents" if form == "lightning" else "moments"
    wanted = MEANS if form == "lightning" else MOMENTS
    source.fetch([0], (kind,))  # opened here, too
    with multiprocessing.get_context("fork").Pool(2) as pool:
        forked = pool.starmap(_fetched, [(source, [row], kind) for row in range(N)])
    with ThreadPoolExecutor(4) as threads:
        threaded = list(threads.map(lambda row: _fetched(source, [row], kind), range(N)))
    copy = pickle.loads(pickle.dumps(source))
    for found in (forked, threaded, [_fetched(copy, [row], kind) for row in range(N)]):
        np.testing.assert_allclose(np.concatenate(found), wanted, rtol=1e-6)


def _fetched(source: ImageSource, rows: Sequence[int], kind: str) -> Any:
    return getattr(source.fetch(rows, (kind,)), kind).numpy()


def test_only_the_first_file_is_read_when_a_layout_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from repa_eval.data.readers.members import Members

    path, seen, begin = made.repa(tmp_path / "it"), [], Members.beginning
    monkeypatch.setattr(Members, "beginning", lambda self, name, most: seen.append(name) or begin(self, name, most))
    source = load_data(str(path), "test")
    first = ["00000/img-mean-std-00000000.npy", "00000/img00000000.png", "dataset.json"]
    assert sorted(set(seen)) == first
    seen.clear()
    source.head(2).digest()
    assert {name for name in seen if name.endswith("png")} == {"00000/img00000000.png", "00000/img00000001.png"}


def test_splits_of_coco(tmp_path: Path) -> None:
    path = made.coco(tmp_path / "it")
    shutil.copytree(path / "val", path / "train")
    (path / "train" / "6.png").unlink()
    for name in ("6.npy", "6_0.npy", "6_1.npy"):
        (path / "train" / name).unlink()
    sizes = {split: len(load_data(str(path), split)) for split in ("train", "reference", "val", "test")}
    assert sizes == {"train": 6, "reference": 6, "val": 7, "test": 7}
    with pytest.raises(UserError, match="has no split 'trainval'; it has train and val"):
        load_data(str(path), "trainval")


def test_plain_folders_stay_folders(tmp_path: Path) -> None:
    path = made.repa(tmp_path / "it")
    (path / "images" / "dataset.json").unlink()
    assert not is_repa(path / "images")
    assert is_repa(path)  # for its latents
    source = load_data(f"folder:{path / 'images'}", "test")
    assert source.num_classes == 2  # as the folders say


def test_a_list_of_something_else_leaves_a_folder_as_it_is(tmp_path: Path) -> None:
    path = made.repa(tmp_path / "it") / "images"
    (path / "dataset.json").write_text('{"title": "cats"}')
    with pytest.raises(UserError, match=r"a dataset\.json of something else is left unread by folder:PATH"):
        load_data(str(path), "train")
    assert load_data(f"folder:{path}", "train").num_classes == 2


@pytest.mark.parametrize("place", ["images", "", "images.zip"])
def test_numbered_folders_are_no_classes_whatever_is_forced(place: str, tmp_path: Path) -> None:
    path = made.repa(tmp_path / "it") if place != "images.zip" else made.repa_zips(tmp_path / "it")
    source = load_data(f"folder:{path / place}", "test")
    assert source.name == f"folder:{path / place}"
    assert source.gives == {"images", "labels"}
    assert source.all_labels().tolist() == LABELS.tolist()


def test_missing_statistics_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = made.lightning(tmp_path / "it")
    load_data(str(path), "train")
    assert not caplog.records
    (path / "latents_stats.pt").unlink()
    assert load_data(str(path), "train").latent_scale == LatentScale()
    assert "no latents_stats.pt, so the latents are read as they are" in caplog.text


# --- bad input: what is done to good files, and the line that says it


def spoil(name: str, data: bytes | str) -> Callable[[Path], None]:
    return lambda path: (path / name).write_bytes(data if isinstance(data, bytes) else data.encode()) and None


def without(*names: str) -> Callable[[Path], None]:
    def remove(path: Path) -> None:
        for name in names:
            (path / name).unlink()

    return remove


def relabel(name: str, change: Callable[[list[Any]], Any]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        labels = json.loads((path / name).read_text())["labels"]
        (path / name).write_text(json.dumps({"labels": change(labels)}))

    return write


def holes(values: Any) -> Any:
    changed = values.copy()
    changed[0, 0, 0] = np.nan
    return changed


def _torch(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def log_variances(index: int) -> bytes:
    return made.npy(np.concatenate([MEANS[index], 2 * np.log(DEVIATIONS[index])]))


def cut(name: str, kept: int) -> Callable[[Path], None]:
    return lambda path: (path / name).write_bytes((path / name).read_bytes()[:kept]) and None


def reshard(**tensors: Any) -> Callable[[Path], None]:
    return lambda path: made.shard(path / "latents_rank00_shard001.safetensors", [3, 4, 5], **tensors)


A, B = "latents_rank00_shard000.safetensors", "latents_rank00_shard001.safetensors"
VAE, PNG = "vae-sd/00000/img-mean-std-0000000{}.npy", "images/00000/img0000000{}.png"
LIST = "vae-sd/dataset.json"
MISSING_3 = without(VAE.format(3))
BAD: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "a latent too few": (
        "repa",
        lambda path: (MISSING_3(path), relabel(LIST, lambda labels: labels[:3] + labels[4:])(path)),
        "7 images and 6 latents; 00000/img00000003.png has no latent: add it, or remove the file",
    ),
    "an image too few": ("repa", without(PNG.format(2)), "6 images and 7 latents; 00000/img-mean-std-00000002.npy has"),
    "as many, but others": (
        "repa",
        lambda path: (MISSING_3(path), relabel(LIST, lambda x: x[:3] + x[4:])(path), without(PNG.format(2))(path)),
        "6 images and 6 latents; 00000/img00000003.png has no latent",
    ),
    "a label too few": (
        "repa",
        relabel(LIST, lambda labels: labels[:-1]),
        "has 6 labels for 7 files; it lacks 00001/img-mean-std-00000006.npy: add its label, or remove the file",
    ),
    "a missing file": ("repa", MISSING_3, "names 00000/img-mean-std-00000003.npy, which is not there: add the file"),
    "no list": ("repa", without(LIST), 'dataset.json is missing: add it, or write {"labels": null} into it'),
    "a path outside": (
        "repa",
        relabel(LIST, lambda labels: [["../../secret.npy", 0], *labels]),
        "names ../../secret.npy, which lies outside of the folder; remove that entry",
    ),
    "an absolute path": ("repa", relabel(LIST, lambda x: [["/etc/passwd", 0], *x]), "names /etc/passwd, which lies o"),
    "a name twice": ("repa", relabel(LIST, lambda labels: [*labels, labels[0]]), "00000000.npy twice; remove one"),
    "labels in words": ("repa", relabel(LIST, lambda labels: [[labels[0][0], "cat"]]), "is 'cat'; a class is a whole"),
    "labels in truths": ("repa", relabel(LIST, lambda labels: [[labels[0][0], True]]), "is True; a class is a whole"),
    "labels below 0": ("repa", relabel(LIST, lambda labels: [[labels[0][0], -1]]), "is -1; a class is a whole number"),
    "labels in vectors": ("repa", relabel(LIST, lambda x: [[x[0][0], [0, 1]]]), r"is [0, 1]; a class is a whole"),
    "labels in a mapping": ("repa", relabel(LIST, dict), "expected a list of [name, class], or null"),
    "another list": ("repa", spoil(LIST, '{"name": "cats"}'), 'has no "labels": expected {"labels": [['),
    "a list that is cut": ("repa", cut(LIST, 40), "dataset.json is damaged"),
    "a latent without deviations": ("repa", spoil(VAE.format(0), made.npy(MEANS[0, :3])), "is 3x2x2; expected"),
    "an unlike latent": (
        "repa",
        spoil(VAE.format(1), made.npy(MOMENTS[1, :, :1])),
        "(sample 1) is 8x1x2, the first 8x2x2",
    ),
    "a log-variance": ("repa", spoil(VAE.format(1), log_variances(1)), "deviations below 0; the file may hold log-var"),
    "NaN": (
        "repa",
        spoil(VAE.format(2), made.npy(holes(MOMENTS[2]))),
        "00000002.npy (sample 2) holds NaN or infinite num",
    ),
    "whole numbers": ("repa", spoil(VAE.format(0), made.npy(MOMENTS[0].astype(int))), "holds int64; floats are exp"),
    "objects": ("repa", spoil(VAE.format(0), made.npy(np.array([{}]))), "holds Python objects, which are never unpick"),
    "a latent that is cut": ("repa", cut(VAE.format(1), 200), "(sample 1) is not a readable .npy file: its "),
    "an image that is none": ("repa", spoil(PNG.format(1), "x"), "img00000001.png is not a readable image"),
    "an image of another size": (
        "repa",
        spoil(PNG.format(1), made.png(PIXELS[1, :8])),
        "img00000001.png is not like the first (16x8, not 16x16; 1 of 7 differ): make them equal",
    ),
    "a folder of nothing": (
        "repa",
        lambda path: [file.unlink() for file in path.rglob("*.png")],
        "images: no images; the layout is images/ and vae-sd/ with a dataset.json in each",
    ),
    "a zip without images": (
        "repa zips",
        lambda path: zipfile.ZipFile(path / "images.zip", "w").writestr("dataset.json", made.listing(made.IMAGE)),
        "images.zip: no images; the layout is",
    ),
    "a zip that is cut": ("repa zips", cut("vae-sd.zip", 900), "vae-sd.zip cannot be read"),
    "a zip with another byte": (
        "repa zips",
        lambda path: (path / "vae-sd.zip").write_bytes(_flipped((path / "vae-sd.zip").read_bytes(), MOMENTS[3])),
        "img-mean-std-00000003.npy cannot be read: its checksum is wrong; make or copy the archive again",
    ),
    "a shard that is cut": ("lightning", cut(B, 300), "safetensors file: it is damaged or ends early; download"),
    "shards of two shapes": (
        "lightning",
        reshard(latents=torch.zeros(3, 4, 2, 1), latents_flip=torch.zeros(3, 4, 2, 2)),
        f"{B}: latents of 4x2x1, those of ",
    ),
    "shards of two sets": ("lightning", reshard(), "hold different tensors (latents_flip); shards of one set"),
    "a shard of something else": (
        "lightning",
        lambda path: made.save_file({"weight": torch.zeros(2)}, path / "model.safetensors"),
        "model.safetensors has no latents (it holds weight); move it out of the folder",
    ),
    "latents of three axes": (
        "lightning",
        lambda path: made.shard(path / A, [0, 1, 2], latents=torch.zeros(3, 4, 2)),
        "latents are F32 [3, 4, 2] for 3 latents; expected floats of 4 axes",
    ),
    "labels of others": (
        "lightning",
        reshard(labels=torch.zeros(2, dtype=torch.int64), latents_flip=torch.zeros(3, 4, 2, 2)),
        "labels are I64 [2] for 3 latents; expected whole numbers, one row for each",
    ),
    "labels below 0 in a shard": (
        "lightning",
        reshard(labels=torch.tensor([0, -1, 2]), latents_flip=torch.zeros(3, 4, 2, 2)),
        "labels -1..2; 0..16,777,216 are allowed",
    ),
    "NaN in a shard": (
        "lightning",
        reshard(
            latents=torch.from_numpy(MEANS[3:6] * np.array([1, np.nan, 1])[:, None, None, None]).float(),
            latents_flip=torch.zeros(3, 4, 2, 2),
        ),
        f"{B}: latents of sample 4 hold NaN or infinite numbers",
    ),
    "statistics of others": (
        "lightning",
        lambda path: made.statistics(path, channels=32),
        "mean has 32 numbers, the latents have 4 channels; it is of other latents",
    ),
    "statistics of nothing": ("lightning", spoil("latents_stats.pt", _torch([1])), "expected mean and std"),
    "a deviation of 0": (
        "lightning",
        spoil("latents_stats.pt", _torch({"mean": torch.zeros(4), "std": torch.zeros(4)})),
        "std must be finite and above 0",
    ),
    "shards in a zip": ("shards in a zip", lambda path: None, "shards are read by rows, which a zip does not allow"),
    "a pair of other lengths": (
        "pair",
        lambda path: made.shard(path / "latents" / B.replace("1", "3"), [0], latents_flip=torch.zeros(1, 4, 2, 2)),
        "7 images in repa:",
    ),
    "a pair in another order": (
        "pair",
        lambda path: (path / "latents" / A).rename(path / "latents" / "latents_rank00_shard9.safetensors"),
        "sample 1 is of class 0 in repa:",
    ),
    "a pair of one": ("pair:", lambda path: None, "expected pair:IMAGES+LATENTS, two data sets joined by a +"),
    "a caption too few": ("coco", without("val/2_0.npy"), "7 latents and 6 first captions; 2_0.npy is missing"),
    "a hole in the numbers": ("coco", without("val/2.npy"), "6 latents and 7 first captions; 2.npy is missing"),
    "a picture too few": ("coco", without("val/2.png"), "7 latents and 6 images; 2.png is missing"),
    "an unlike caption": ("coco", spoil("val/2_0.npy", made.npy(TEXTS[2, :2])), "2_0.npy is (2, 6), the first (3, 6)"),
}


def _flipped(data: bytes, values: Any) -> bytes:
    place = data.index(values.tobytes()) + 5
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize("what", BAD)
def test_bad_files_are_one_line(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    form, change, text = BAD[what]
    monkeypatch.chdir(tmp_path)
    path = Path("it")
    if form == "shards in a zip":
        spec = str(made.in_one_zip(path, made.lightning))
    elif form in FORMS:
        spec = str(FORMS[form][0](path))
        assert len(_all(spec)) == N
    else:
        spec = "pair:one"
    change(path)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(UserError, match=re.escape(text)) as caught:
        _all(spec)
    assert "\n" not in str(caught.value)
    assert {file: file.read_bytes() for file in Path().rglob("*") if file.is_file()} == before
    row = f"| {what} | `{str(caught.value).replace('|', '/')}` |\n"
    if os.environ.get("WRITE_DOCS"):
        DOCS.write_text(DOCS.read_text(encoding="utf-8") + row, encoding="utf-8")
    assert row in DOCS.read_text(encoding="utf-8"), "cut the table and write it anew: WRITE_DOCS=1"


def _all(spec: str) -> Any:
    source = load_data(spec, "val")
    kind = next(iter(source.gives - {"labels"}))
    return getattr(source.fetch(range(len(source)), sorted(source.gives)), kind)


def test_moments_for_latents_and_latents_for_moments(tmp_path: Path) -> None:
    made.shard(tmp_path / "shards" / "a.safetensors", range(N), latents=torch.from_numpy(MOMENTS))
    source = load_data(str(tmp_path / "shards"), "test")
    with pytest.raises(UserError, match=r"the latents are 8x2x2 .*; this model reads 4x2x2.*they may be moments"):
        model_input(source, (4, 2, 2))
    path = made.repa(tmp_path / "it")
    for name in made.names(made.MOMENT):
        (path / "vae-sd" / name).write_bytes(made.npy(np.abs(MEANS[0])))
    shutil.rmtree(path / "images")
    source = load_data(str(path), "test")
    with pytest.raises(UserError, match=r"the latents are 2x2x2 .*; this model reads 4x2x2.*they may be latents"):
        model_input(source, (4, 2, 2))
    assert isinstance(source, ImageSource)
    assert MomentMembers.latent_scale == SD
