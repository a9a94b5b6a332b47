"""Quality of samples: names of the numbers, protocol, the level of real images, Inception without a network."""

from __future__ import annotations

import json
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from helpers import digits, tiny
from repa_eval import results
from repa_eval.errors import Failure, UserError
from repa_eval.evaluation.sample_quality import evaluate, metric_name
from repa_eval.interfaces.extractor import Extractor, Features, load_extractor
from repa_eval.interfaces.images import Images
from repa_eval.metrics.fid import frechet_distance
from repa_eval.monitors import copies as copies_module
from repa_eval.monitors.copies import Copies
from repa_eval.monitors.real_level import RealLevel
from repa_eval.train.evaluated import evaluated_run


class Judge(Extractor):
    """Fast, deterministic: four sums of pixels as features, ten as logits."""

    digest = "stub"

    def __init__(self, name: str = "inception", *, has_logits: bool = True) -> None:
        self.name, self.has_logits, self.calls = name, has_logits, 0
        self._map = torch.randn(64, 14, generator=torch.Generator().manual_seed(0)) / 8

    def __call__(self, images: Tensor) -> Features:
        self.calls += len(images)
        values = (images.float().flatten(1) / 255 @ self._map).numpy()
        return Features(values[:, :4], values[:, 4:] if self.has_logits else None)


def values(rows: list[results.Row]) -> dict[str, float | None]:
    return {row.metric: row.value for row in rows}


# --- names and rows


def test_names_say_who_judged() -> None:
    assert [metric_name(suffix, "inception") for suffix in ("fd", "is", "precision")] == [
        "fid", "inception_score", "precision",
    ]  # fmt: skip
    assert [metric_name(suffix, "digits") for suffix in ("fd", "is", "recall")] == [
        "fd_digits",
        "is_digits",
        "recall_digits",
    ]
    for judge, expected in {
        Judge("inception"): ["fid", "inception_score", "precision", "recall"],
        Judge("digits"): ["fd_digits", "is_digits", "precision_digits", "recall_digits"],
        Judge("pixel", has_logits=False): ["fd_pixel", "precision_pixel", "recall_pixel"],
    }.items():
        rows = evaluate(digits("test"), digits("val"), judge)
        assert [row.metric for row in rows] == expected


def test_rows_and_protocol() -> None:
    judge = Judge()
    rows = evaluate(
        digits("test"),
        digits("val"),
        judge,
        metrics=("fd",),
        protocol={"num_steps": 7},
        columns={"run": "mine", "step": 3},
    )
    [row] = rows
    assert (row.run, row.step, row.n, row.note) == ("mine", 3, 360, None)
    [record] = results.records_of(rows).values()
    assert record == {
        "kind": "sample quality", "extractor": "inception", "extractor_hash": "stub", "resize": "none",
        "reference": "digits", "reference_hash": digits("val").digest(), "reference_n": 240, "num_samples": 360,
        "num_steps": 7,
    }  # fmt: skip
    real, fake = (judge(digits(split).pixels(range(n))).features for split, n in (("val", 240), ("test", 360)))
    expected = frechet_distance(real.mean(0), np.cov(real.T), fake.mean(0), np.cov(fake.T))
    assert row.value == pytest.approx(expected, rel=1e-4)


def test_features_are_extracted_once() -> None:
    judge = Judge()
    judge.digest = "counted"
    evaluate(digits("test"), digits("val"), judge)
    assert judge.calls == 360 + 240
    evaluate(digits("test"), digits("val"), judge)
    assert judge.calls == 360 + 240 + 360  # those of the reference were kept


def test_another_judge_does_not_get_the_kept_features() -> None:
    one, other = Judge(), Judge()
    one.digest, other.digest = "one", "other"
    other._map = other._map * 2
    a, b = (evaluate(digits("test"), digits("val"), judge, metrics=("fd",))[0].value for judge in (one, other))
    assert b == pytest.approx(4 * a, rel=1e-3)


def test_the_batch_size_changes_nothing() -> None:
    a, b = (
        values(evaluate(digits("test"), digits("val"), load_extractor("digits"), batch_size=size)) for size in (50, 360)
    )
    assert a == pytest.approx(b, rel=1e-4)


def test_too_few_samples_carry_a_note() -> None:
    judge = load_extractor("digits")
    few, enough = (evaluate(digits("test").head(n), digits("val"), judge, metrics=("fd",))[0] for n in (127, 128))
    assert few.note == "n=127 is below twice the 64 features: the covariance is noisy"
    assert enough.note is None


def test_an_unknown_metric_is_refused_before_anything_is_computed() -> None:
    judge = Judge()
    with pytest.raises(UserError, match="unknown sample metric 'fdd'; did you mean 'fd'"):
        evaluate(digits("test"), digits("val"), judge, metrics=("fd", "fdd"))
    assert judge.calls == 0


# --- what the numbers mean


@pytest.mark.parametrize("name", ["digits", "pixel_pca"])
def test_samples_equal_to_the_reference(name: str) -> None:
    real = digits("reference").head(1000)
    found = values(evaluate(real, real, load_extractor(name), metrics=("fd", "precision_recall")))
    assert found[f"fd_{name}"] == pytest.approx(0, abs=1e-3)
    assert found[f"precision_{name}"] == found[f"recall_{name}"] == 1


def test_worse_images_are_judged_worse() -> None:
    judge, reference, others = load_extractor("digits"), digits("reference"), digits("train").part(4000, 4600)
    noise = np.random.default_rng(0).integers(-60, 61, others.images.shape)
    noisy = np.clip(others.images.astype(int) + noise, 0, 255).astype(np.uint8)
    one_class = others.images[others.labels == 3]
    found = {
        name: values(evaluate(Images(name, "all", images, np.zeros(len(images), np.int64), 10), reference, judge))
        for name, images in {"real": others.images, "noisy": noisy, "one": one_class}.items()
    }
    assert found["real"]["fd_digits"] < 1.0
    assert found["noisy"]["fd_digits"] > 3 * found["real"]["fd_digits"]
    assert found["one"]["fd_digits"] > 30 * found["real"]["fd_digits"]
    assert found["one"]["is_digits"] < 1.3 < 5 < found["real"]["is_digits"]
    assert found["one"]["recall_digits"] < 0.5 < found["real"]["recall_digits"]


def test_the_floor_is_the_level_of_real_images(tmp_path: Path) -> None:
    recipe = tiny(split="train", num_samples=500, final_samples=1000)
    floor = RealLevel(evaluated_run(recipe, tmp_path / "mine"))
    assert list(floor(3, None)) == []  # once, at the end
    rows = list(floor(6, None))
    assert [(row.metric, row.n, row.step, row.run) for row in rows] == [
        ("fd_digits_floor", 500, None, "mine"),
        ("fd_digits_floor", 1000, None, "mine"),
    ]
    assert 0.05 < rows[1].value < rows[0].value < 3
    assert all("real training images" in record["samples"] for record in results.records_of(rows).values())
    assert floor.done(6, rows)
    assert not floor.done(6, rows[:1])
    only_regular = RealLevel(evaluated_run(tiny(split="train", num_samples=500), tmp_path / "mine"))
    assert [row.n for row in only_regular(6, None)] == [500]


def test_copies_of_training_images_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny(split="train", num_samples=100, eval_every=2)
    copies = Copies(evaluated_run(recipe, tmp_path / "mine"))
    assert list(copies(3, None)) == []  # once, at the end
    assert copies.done(3, [])
    monkeypatch.setattr(copies_module, "draw", lambda _model, count, *_: digits("train").part(5000, 5000 + count))
    rows = list(copies(6, None))
    found = values(rows)
    assert found["authpct_digits"] == 0
    assert found["ct_digits"] < -5
    assert {(row.step, row.n) for row in rows} == {(6, 100)}
    picture = tmp_path / "mine" / "media" / "neighbours-0000006.png"
    tiles = np.asarray(Image.open(picture))
    assert np.array_equal(tiles[:, :10], tiles[:, 10:20])  # beside each copy stands its original
    words = json.loads(picture.with_suffix(".json").read_text())
    assert (words["rows"], words["columns"], words["tile"]) == (["cosine 1.000"] * 10, 6, 10)
    assert "samples (of 100) closest to one of 12000 real images" in words["caption"]
    assert copies.done(6, rows)
    assert not copies.done(6, rows[:1])
    picture.unlink()
    assert not copies.done(6, rows)
    monkeypatch.setattr(copies_module, "draw", lambda _model, count, *_: digits("test-large").part(0, count))
    assert values(copies(6, None))["authpct_digits"] > 25  # images that training never saw
    assert values(copies(6, None))["ct_digits"] > -3


def test_pixels_need_a_reference_and_its_size() -> None:
    judge = load_extractor("pixel_pca")
    with pytest.raises(UserError, match="takes its components from images: give a reference that holds images"):
        judge(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    judge.prepare(digits("val"))
    assert judge(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).features.shape == (2, 32)
    with pytest.raises(UserError, match="images of 256 values, reference of 64"):
        judge(torch.zeros(1, 1, 16, 16, dtype=torch.uint8))
    with pytest.raises(UserError, match="extractor pixel_pca has no weights"):
        load_extractor("pixel_pca", __file__)


# --- Inception


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of ADM's Inception: there is no constructor without any, so the loading is left out."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Bare(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_: object, **__: object) -> None:
            """Keep the fresh weights."""

    file = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save({}, file)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Bare("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(file))
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)
    torch.save(network.state_dict(), file)
    return file


def test_inception_features(inception_weights: Path) -> None:
    judge = load_extractor("inception", inception_weights)
    assert (judge.name, judge.has_logits) == ("inception", True)
    assert judge.digest == load_extractor("inception", inception_weights).digest
    grey = digits("test").pixels(range(3))
    found = judge(grey)
    assert found.features.shape == (3, 2048)
    assert found.logits.shape == (3, 1008)
    assert found.features.dtype == found.logits.dtype == np.float32
    assert np.array_equal(judge(grey.repeat(1, 3, 1, 1)).features, found.features)  # grey is three equal channels
    assert len(np.unique(found.features, axis=0)) == 3
    # logits without the bias of the last layer, as ADM takes them
    torch.testing.assert_close(
        torch.from_numpy(found.features) @ judge.network.fc.weight.T, torch.from_numpy(found.logits)
    )
    assert float(judge.network.fc.bias.abs().max()) > 0


def test_inception_without_weights_and_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", offline)
    with pytest.raises(
        Failure, match=r"no weights here \(.*not known.*\): fetch weights-inception-.*--extractor-weights"
    ) as caught:
        load_extractor("inception")
    assert "\n" not in str(caught.value)


def test_a_file_that_holds_other_weights(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(2)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("x")
    for name in ("other.pth", "text.pth"):
        with pytest.raises(Failure, match=name) as caught:
            load_extractor("inception", tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"extractor weights 'none\.pth' do not exist"):
        load_extractor("inception", "none.pth")
