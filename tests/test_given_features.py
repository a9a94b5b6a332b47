"""Features of a teacher that the data bring in place of images: the same numbers as from the images."""

from __future__ import annotations

import json
from pathlib import Path

import layout_files as made
import numpy as np
import pytest
from click.testing import CliRunner, Result

from helpers import run, tiny
from repa_eval.cli import main
from repa_eval.errors import UserError
from repa_eval.evaluation.token_structure import spatial_level
from repa_eval.features.capture import Capture
from repa_eval.features.given import GivenFeatures
from repa_eval.features.teacher import teacher_features
from repa_eval.interfaces.images import load_data
from repa_eval.interfaces.teacher import load_teacher


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.erw_of_digits(tmp_path_factory.mktemp("shards") / "it")


def test_given_features_are_those_of_the_images(shards: Path) -> None:
    data, digits = load_data(str(shards), "train"), load_data("digits", "trainval").head(60)
    teacher = load_teacher("digits-vit")
    for pool in ("mean", "none"):
        capture = Capture(pool=pool, batch_size=13)
        expected = teacher_features(teacher, digits, capture=capture)
        got = teacher_features(GivenFeatures("digits-vit", data), data, capture=capture)
        np.testing.assert_allclose(got, expected, atol=1e-5)
    with pytest.raises(UserError, match="teacher digits-vit has no class token; pool it by mean"):
        teacher_features(GivenFeatures("digits-vit", data), data, capture=Capture(pool="cls"))
    given, own = (
        spatial_level(which, images, metrics=["lds"])[0]
        for which, images in ((GivenFeatures("digits-vit", data), data), (teacher, digits))
    )
    assert given.value == pytest.approx(own.value, rel=1e-5)


def test_the_digest_is_of_the_features(shards: Path, tmp_path: Path) -> None:
    one = GivenFeatures("a", load_data(str(shards), "train"))
    other = GivenFeatures("a", load_data(str(made.erw(tmp_path / "it")), "train"))
    assert one.digest.startswith("of the data, ")
    assert one.digest != other.digest
    assert one.digest == GivenFeatures("b", load_data(str(shards), "train").head(5)).digest


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = made.of_digits(tmp_path_factory.mktemp("data") / "it")
    recipe = tiny("repa", data=str(data), split="train", patch_size=1, max_steps=1, enc_type="digits-vit")
    return run(recipe, tmp_path_factory.mktemp("run") / "it")


def command(name: str, ckpt: Path, *words: object) -> Result:
    fixed = ["--layer", "1", "--timesteps", "0.1", "--device", "cpu", "--quiet", "--json"]
    return CliRunner().invoke(main, [name, "--ckpt", str(ckpt), *fixed, *map(str, words)])


def test_shards_without_images_are_aligned_and_probed(
    ckpt: Path, shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("align", "probe"):
        done = command(name, ckpt, "--data", shards)
        assert done.exit_code == 0, done.output
        assert "holds no images: the features in it are taken for those of teacher digits-vit" in caplog.text
        caplog.clear()
        hashes = {record.get("teacher_hash") for record in json.loads(done.stdout)["protocols"].values()} - {None}
        assert len(hashes) == 1
        assert hashes.pop().startswith("of the data, ")
    done = command("align", ckpt, "--data", shards, "--teacher-weights", "w.pt")
    assert done.exit_code == 2
    assert "hold a teacher's features and no images: leave --teacher-weights out" in done.stderr


def test_another_teacher_reads_images(ckpt: Path, shards: Path) -> None:
    done = command("align", ckpt, "--data", shards, "--against", "digits-vit-random")
    assert done.exit_code == 2
    assert "has no images; it gives features, labels, latents" in done.stderr
