"""What a probe is fitted and scored on: the data's own splits, two data sets, or a division of one by hash."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import layout_files as made
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from helpers import digits, run, tiny
from repa_eval.cli import main
from repa_eval.errors import UserError
from repa_eval.interfaces.images import Images
from repa_eval.probes import splits as probes
from repa_eval.probes.drawing import THREE_PARTS, balanced, hashes, parts_of
from repa_eval.probes.splits import probe_splits
from repa_eval.runtime.seeding import derive


def folder(path: Path, rows: range, names: str = "abcdefghij") -> Path:
    """Digits in a folder per class."""
    for index in rows:
        label = digits("trainval").labels[index]
        file = path / names[label] / f"{index:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits("trainval").images[index, 0]).save(file)
    return path


def pixels(images: Any) -> set[bytes]:
    return {image.tobytes() for image in images.pixels(range(len(images))).numpy()}


def test_one_set_is_divided_by_seed_and_index(tmp_path: Path) -> None:
    path = made.of_digits(tmp_path / "set", count=200)
    splits = probe_splits(str(path), seed=3)
    expected: dict[str, list[int]] = {"test": [], "val": [], "train": []}
    for index in range(200):
        hashed = derive(3, "probe part", index) / 2**63
        expected["test" if hashed < 0.2 else "val" if hashed < 0.3 else "train"].append(index)
    for name, images in splits.parts().items():
        assert images.rows == expected[name]
        assert np.array_equal(images.all_labels(), digits("trainval").labels[expected[name]])  # of dataset.json
    assert sum(map(len, expected.values())) == 200
    assert [len(each) for each in splits.parts().values()] == pytest.approx([140, 20, 40], abs=12)
    assert not pixels(splits.train) & pixels(splits.test)
    record = splits.record()
    assert record["parts"] == "test 20%, val 10%, train 70%, by hash of (seed, index)"
    assert (record["parts_seed"], record["split"], record["data"]) == (3, "all", f"repa:{path}")
    assert probe_splits(str(path), seed=4).test.rows != expected["test"]


def test_a_part_does_not_depend_on_how_many_there_are() -> None:
    few, many = (parts_of(hashes(count, 0), THREE_PARTS) for count in (50, 300))
    for name, rows in few.items():
        assert rows.tolist() == [row for row in many[name] if row < 50]


def test_training_and_test_data_apart(tmp_path: Path) -> None:
    train, test = folder(tmp_path / "train", range(150)), folder(tmp_path / "test", range(150, 220))
    splits = probe_splits(str(train), str(test), seed=1)
    assert len(splits.train) + len(splits.val) == 150
    assert pixels(splits.train) | pixels(splits.val) == {i.tobytes() for i in digits("trainval").images[:150]}
    assert pixels(splits.test) == {i.tobytes() for i in digits("trainval").images[150:220]}
    record = splits.record()
    assert (record["data"], record["train_data"]) == (f"folder:{test}", f"folder:{train}")
    assert record["parts"] == "val 10%, train 90%, by hash of (seed, index)"


def test_data_with_splits_are_not_divided(tmp_path: Path) -> None:
    splits = probe_splits("digits")
    assert {name: len(images) for name, images in splits.parts().items()} == {"train": 1500, "val": 240, "test": 600}
    assert splits.drawn == {}
    test = made.of_digits(tmp_path / "test", count=30)
    splits = probe_splits("digits", str(test / "images"))
    assert splits.test.digest() == digits("trainval").head(30).digest()
    assert splits.val.digest() == digits("val").digest()
    assert np.bincount(splits.train.all_labels()).tolist() == [150] * 10
    assert splits.drawn == {"train_data": "digits"}


@pytest.mark.parametrize("form", ["itself", "a copy", "other names", "a part", "a zip"])
def test_test_images_that_were_trained_on_are_refused(form: str, tmp_path: Path) -> None:
    train = folder(tmp_path / "train", range(120))
    test = tmp_path / "test"
    if form == "itself":
        test = train
    elif form == "a copy":
        shutil.copytree(train, test)
    elif form == "a zip":
        test = made.zipped(train, tmp_path / "test.zip")
    else:
        for path in sorted(train.rglob("*.png"))[:: 1 if form == "other names" else 2]:
            file = test / path.parent.name / f"z{9999 - int(path.stem)}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, file)
    count = 60 if form == "a part" else 120
    with pytest.raises(
        UserError, match=rf"all {count} test images of folder:.* that the probe is fitted on: name others"
    ):
        probe_splits(str(train), str(test))


def test_the_same_parts_of_python_are_refused() -> None:
    train, val = digits("val").head(40), digits("test").head(20)
    with pytest.raises(
        UserError, match="training and test images are the same 40 of digits: a probe is scored on others"
    ):
        probes.Splits(train, val, digits("val").take(range(40))).check()


def test_few_shared_images_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train, test = folder(tmp_path / "train", range(150)), folder(tmp_path / "test", range(140, 220))
    splits = probe_splits(str(train), str(test))
    shared = len(pixels(splits.train) & pixels(splits.test)) + len(pixels(splits.val) & pixels(splits.test))
    assert shared == 10
    assert "10 of 80 test images are among the images that the probe is fitted on" in caplog.text


def test_classes_of_other_numbers_are_refused(tmp_path: Path) -> None:
    train, test = folder(tmp_path / "train", range(150)), folder(tmp_path / "test", range(150, 220))
    shutil.rmtree(test / "c")
    with pytest.raises(
        UserError, match=r"class 2 is c in folder:.*train and d in folder:.*test: training and test data need"
    ):
        probe_splits(str(train), str(test))


def test_too_few_to_divide(tmp_path: Path) -> None:
    path = made.lightning(tmp_path / "it")
    with pytest.raises(
        UserError, match=r"has 7 images, too few to divide \(test \d, val \d, train \d\): name more, or"
    ):
        probe_splits(str(path), seed=1)


def test_data_without_labels_cannot_be_probed(tmp_path: Path) -> None:
    path = made.repa(tmp_path / "it", labels=None)
    with pytest.raises(UserError, match="has no labels; it gives images, moments"):
        probe_splits(str(path))


def test_large_sets_are_drawn_evenly_from_the_classes() -> None:
    labels = np.sort(np.random.default_rng(0).integers(0, 40, 3000) ** 2 // 40)
    values = hashes(3000, 0)
    rows = balanced(np.arange(3000), labels, values, 500)
    assert len(set(rows)) == 500
    counts, there = (np.bincount(each, minlength=40) for each in (labels[rows], labels))
    most = counts.max()
    assert all(count in (most, most - 1) or count == whole for count, whole in zip(counts, there, strict=True))
    own = np.flatnonzero(labels == 3)
    kept = [row for row in rows if labels[row] == 3]
    assert sorted(kept) == sorted(own[np.argsort(values[own])][: len(kept)])
    assert balanced(np.arange(9), labels, values, 9).tolist() == list(range(9))
    images = Images("many", "all", np.zeros((3000, 1, 2, 2), dtype=np.uint8), labels, 400, split_known=False)
    assert len(probes._usual("train", images, 0)) == 3000  # ten of each class are more than there are
    assert len(probes._usual("val", images, 0)) == 800


# --- the command, on latents


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.of_digits(tmp_path_factory.mktemp("latents") / "data", count=160)


@pytest.fixture(scope="module")
def ckpt(latents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on official latents."""
    recipe = tiny("repa", data=str(latents), split="train", patch_size=1, max_steps=2, enc_type="digits-vit")
    return run(recipe, tmp_path_factory.mktemp("runs") / "run")


def command(ckpt: Path, *words: object) -> Result:
    fixed = ["--layer", "1", "--timesteps", "0.1", "--device", "cpu", "--quiet", "--json"]
    return CliRunner().invoke(main, ["probe", "--ckpt", str(ckpt), *fixed, *map(str, words)])


def test_a_run_on_official_latents_is_probed(ckpt: Path, latents: Path, tmp_path: Path) -> None:
    done = command(ckpt, "--data", latents)
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert {row["metric"] for row in answer["rows"]} >= {"probe_accuracy", "knn_accuracy", "probe_accuracy_teacher"}
    records = list(answer["protocols"].values())
    assert all(record["parts"].endswith("by hash of (seed, index)") for record in records)
    assert any(record.get("latent_scale") == [0.18215] for record in records)
    test = made.of_digits(tmp_path / "test", count=40, first=160)
    done = command(ckpt, "--data", latents, "--test-data", test)
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert {record["num_test"] for record in answer["protocols"].values()} == {40}
    assert {record["train_data"] for record in answer["protocols"].values()} == {f"repa:{latents}"}


def test_the_command_refuses_what_it_was_fitted_on(ckpt: Path, latents: Path) -> None:
    done = command(ckpt, "--data", latents, "--test-data", latents)
    assert done.exit_code == 2
    assert "name others with --test-data" in done.stderr
    assert done.stdout == ""
    assert len([line for line in done.stderr.splitlines() if line.startswith("error:")]) == 1
