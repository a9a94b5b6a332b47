"""`repa-eval stats`, every form of a reference, protocols, several processes, samples that a sweep keeps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from helpers import ROOT, digits, environment, torchrun
from repa_eval.cli import main as repa_eval
from repa_eval.data.readers.image_files import open_images
from repa_eval.data.readers.statistics import open_statistics
from repa_eval.errors import Failure, UserError
from repa_eval.evaluation.reference import listing_hash
from repa_eval.evaluation.sample_quality import evaluate
from repa_eval.extractors.inception import Inception
from repa_eval.interfaces.extractor import Extractor, load_extractor
from repa_eval.metrics.fid import moments

JUDGE = ["--extractor", "digits"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    train = digits("train").images.transpose(0, 2, 3, 1)
    np.savez("fake.npz", arr_0=train[5000:5300])
    np.savez("real.npz", arr_0=train[:400])
    return tmp_path


def call(*words: str) -> Result:
    return CliRunner().invoke(repa_eval, [*words, "--device", "cpu"])


def fails(done: Result, code: int, text: str) -> None:
    assert done.exit_code == code, done.output
    assert done.stderr.count("\n") == 1
    assert text in done.stderr


def fid(*words: str) -> dict[str, Any]:
    done = call("fid", "--samples", "fake.npz", "--json", *words)
    assert done.exit_code == 0, done.output
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def values(answer: dict[str, Any]) -> dict[str, float | None]:
    return {row["metric"]: row["value"] for row in answer["rows"]}


# --- statistics of ours


def test_statistics_give_the_numbers_of_the_images(here: Path) -> None:
    done = call("stats", "real.npz", "--out", "ref.npz", *JUDGE, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["provenance"]["n"] == told["provenance"]["images_kept"] == 400
    assert told["provenance"]["extractor_hash"] == load_extractor("digits").digest
    assert told["warnings"] == ["no mu_s and sigma_s: extractor digits has no spatial map, so there is no sFID"]
    with np.load("ref.npz", allow_pickle=False) as archive:
        assert sorted(archive.files) == ["arr_0", "mu", "provenance", "sigma"]
        assert np.array_equal(archive["arr_0"], np.load("real.npz")["arr_0"])
        assert archive["sigma"].shape == (64, 64)
    direct, through = fid("--reference", "real.npz", *JUDGE), fid("--reference", "ref.npz", *JUDGE)
    assert values(direct) == pytest.approx(values(through), rel=1e-9)
    [record] = through["protocols"].values()
    assert (record["reference"], record["reference_n"]) == ("ref.npz", 400)
    shown = call("fid", "--samples", "fake.npz", "--reference", "ref.npz", *JUDGE).stdout
    assert "reference ref.npz (statistics of 400 images)" in shown
    assert "protocol adm: resize digits none, ddof 1, is splits of 5000 in order" in shown


def test_fewer_images_or_none_are_kept(here: Path) -> None:
    call("stats", "real.npz", "--out", "some.npz", *JUDGE, "--num-images", "100")
    held = np.load("some.npz")["arr_0"]
    assert np.array_equal(held, np.load("real.npz")["arr_0"][np.linspace(0, 399, 100).astype(int)])
    shown = call("stats", "digits", "--out", "none.npz", *JUDGE, "--num-images", "0").stdout
    assert "none.npz: 4000 images of 8x8, 0 of them kept" in shown
    assert "note: no images in arr_0" in shown
    fails(call("stats", "real.npz", "--out", "ref.txt"), 2, "--out ref.txt: statistics are written as .npz")
    fails(call("stats", "nothing", "--out", "ref.npz"), 2, "'nothing' is not a folder, .zip, .npz or data set (")
    assert not list(here.glob(".*tmp"))


def test_what_a_reference_lacks_is_said(here: Path) -> None:
    seen = moments(load_extractor("digits")(digits("train").pixels(range(400))).features)
    np.savez("bare.npz", mu=seen.mean, sigma=seen.covariance)  # as of MAR, JiT, clean-fid
    answer = fid("--reference", "bare.npz", *JUDGE)
    assert values(answer)["fd_digits"] == pytest.approx(values(fid("--reference", "real.npz", *JUDGE))["fd_digits"])
    assert values(answer)["precision_digits"] is None
    assert "left out: bare.npz has no images (arr_0)" in answer["warnings"]
    call("stats", "real.npz", "--out", "ref.npz", *JUDGE)
    with pytest.raises(UserError, match="was made with different settings"):
        _refuse("ref.npz", "digits", shape=(1, 16, 16))


def _refuse(path: str, name: str, shape: tuple[int, ...] = (1, 8, 8)) -> None:
    from repa_eval.evaluation.reference import refuse_misfit

    statistics = open_statistics(Path(path))
    assert statistics is not None
    refuse_misfit(statistics, load_extractor(name), shape)


def test_a_stale_or_foreign_reference_is_refused_with_both_hashes(here: Path) -> None:
    call("stats", "real.npz", "--out", "ref.npz", *JUDGE)
    listing = listing_hash(Path("real.npz"))
    os.utime("real.npz", ns=(1, 1))
    done = call("fid", "--samples", "fake.npz", "--reference", "ref.npz", *JUDGE)
    fails(done, 2, f"real.npz {listing}, now {listing_hash(Path('real.npz'))}; make it again: repa-eval stats")
    call("stats", "real.npz", "--out", "ref.npz", *JUDGE)
    from safetensors.torch import load_file, save_file

    weights = ROOT / "repa_eval" / "weights" / "digits-judge.safetensors"
    save_file({name: 1.01 * value for name, value in load_file(weights).items()}, "other.safetensors")
    words = ["--reference", "ref.npz", *JUDGE, "--extractor-weights", "other.safetensors"]
    done = call("fid", "--samples", "fake.npz", *words)
    was, now = load_extractor("digits").digest, load_extractor("digits", "other.safetensors").digest
    fails(done, 2, f"extractor_hash {was}, now {now}")
    call("stats", "digits", "--split", "val", "--out", "pca.npz", "--extractor", "pixel_pca")
    fails(call("fid", "--samples", "fake.npz", "--reference", "pca.npz", *JUDGE), 2, "extractor pixel_pca, now digits")


def test_a_changed_folder_makes_its_statistics_stale(here: Path) -> None:
    Path("images").mkdir()
    for index in range(5):
        Image.fromarray(digits("val").images[index, 0]).save(f"images/{index}.png")
    call("stats", "images", "--out", "ref.npz", *JUDGE)
    _refuse("ref.npz", "digits")
    Image.fromarray(digits("val").images[9, 0]).save("images/9.png")
    with pytest.raises(UserError, match=r"files of .*images"):
        _refuse("ref.npz", "digits")


# --- files of others


def test_torch_fidelitys_caches(here: Path) -> None:
    features = load_extractor("digits")(digits("train").pixels(range(400))).features
    seen = moments(features)
    torch.save({"mu": seen.mean.astype(np.float32), "sigma": seen.covariance}, "a-inception-stat-fid-2048.pt")
    torch.save(torch.from_numpy(features), "a-inception-features-2048.pt")
    expected = values(fid("--reference", "real.npz", *JUDGE))
    statistics = values(fid("--reference", "a-inception-stat-fid-2048.pt", *JUDGE))
    assert statistics["fd_digits"] == pytest.approx(expected["fd_digits"], rel=1e-4)
    assert statistics["recall_digits"] is None
    assert values(fid("--reference", "a-inception-features-2048.pt", *JUDGE)) == pytest.approx(expected, rel=1e-9)
    np.savez("mine_clean_custom_na_kid.npz", feats=features)
    assert values(fid("--reference", "mine_clean_custom_na_kid.npz", *JUDGE)) == pytest.approx(expected, rel=1e-9)


class Loud:
    def __reduce__(self) -> Any:
        return print, ("executed",)


def test_damaged_and_hostile_statistics(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"mu": Loud(), "sigma": 1}, "code.pt")
    Path("text.pt").write_text("x")
    np.savez("half.npz", mu=np.zeros(3))
    np.savez("shape.npz", mu=np.zeros(3), sigma=np.eye(4))
    np.savez("nan.npz", mu=np.zeros(3), sigma=np.full((3, 3), np.nan))
    np.savez("feats.npz", feats=np.zeros(3, dtype=int))
    np.savez("objects.npz", mu=np.array([Loud()], dtype=object), sigma=np.eye(1))
    torch.save([1], "list.pt")
    for name, kind, text in (
        ("code.pt", Failure, "code execution to load"),
        ("text.pt", Failure, "text.pt"),
        ("half.npz", UserError, "mu without sigma"),
        ("shape.npz", UserError, r"mu is \(3,\) and sigma \(4, 4\); expected"),
        ("nan.npz", UserError, "holds NaN or infinity"),
        ("feats.npz", UserError, r"features are int64 \(3,\); expected floats"),
        ("objects.npz", Failure, "never unpickled"),
        ("list.pt", UserError, "expected torch-fidelity's statistics"),
        ("none.pt", UserError, "reference none.pt does not exist"),
    ):
        with pytest.raises(kind, match=text):
            open_statistics(Path(name))
    assert capsys.readouterr().out == ""
    assert open_statistics(Path("real.npz")) is None
    fails(call("fid", "--samples", "fake.npz", "--reference", "shape.npz", *JUDGE), 2, "expected (D,) and (D, D)")


def test_another_width_is_refused(here: Path) -> None:
    np.savez("wide.npz", mu=np.zeros(70), sigma=np.eye(70))
    done = call("fid", "--samples", "fake.npz", "--reference", "wide.npz", *JUDGE, "--metrics", "fd")
    fails(done, 2, "mu1 has 70 entries and mu2 64; both must come from the same network")


# --- streaming


def test_an_npz_is_streamed(tmp_path: Path) -> None:
    """Reading 200 MB takes the memory of a few batches."""
    code = """
import resource, sys
from pathlib import Path
from repa_eval.data.readers.image_files import open_images
source = open_images(sys.argv[1])
source.fetch(range(4))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
total = sum(int(source.pixels(range(first, first + 64))[:, 0, 0, 0].sum()) for first in range(0, len(source), 64))
print(total, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    pixels = np.random.default_rng(0).integers(0, 255, (1024, 256, 256, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", arr_0=pixels)
    command = [sys.executable, "-c", code, str(tmp_path / "a.npz")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    total, more = map(int, done.stdout.split())
    assert total == int(pixels[:, 0, 0, 0].astype(np.int64).sum())
    assert more < 64_000  # KB; the array is 201,000


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_rows_in_any_order(save: Any, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 5, 4, 3), dtype=np.uint8)
    save(tmp_path / "a.npz", arr_0=pixels, arr_1=np.arange(20))
    source = open_images(tmp_path / "a.npz")
    for indices in ([3, 4, 5], [19, 0, 7], [2], [], [5, 5]):
        if not indices:
            continue
        samples = source.fetch(indices)
        assert samples.labels.tolist() == indices
        assert np.array_equal(samples.pixels.permute(0, 2, 3, 1).numpy(), pixels[indices])
    assert source.digest() == digests_in_memory(pixels, np.arange(20))


def digests_in_memory(pixels: np.ndarray, labels: np.ndarray) -> str:
    from repa_eval.interfaces.images import Images

    return Images("a", "all", np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), labels, 20).digest()


def test_an_array_that_lies_about_its_size(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", arr_0=np.zeros((4, 2, 2, 3), np.uint8))
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        data = archive.read("arr_0.npy")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("arr_0.npy", data.replace(b"(4, 2, 2, 3)", b"(9, 2, 2, 3)"))
    with pytest.raises(Failure, match=r"arr_0 has .* bytes, which do not fit \(9, 2, 2, 3\)"):
        open_images(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", arr_0=np.zeros((4, 2, 2, 3), np.uint8), arr_1=np.zeros(3, np.int64))
    with pytest.raises(UserError, match=r"arr_1 is int64 \(3,\); expected 4 labels"):
        open_images(tmp_path / "c.npz")


# --- metrics and protocols of the command


def test_metrics_by_any_of_their_names(here: Path) -> None:
    named = fid(
        "--reference", "real.npz", *JUDGE, "--metrics", "fid,precision,density,is,vendi,kid_unbiased,fd_pixel_pca"
    )
    assert list(values(named)) == [
        "fd_digits", "precision_digits", "recall_digits", "density_digits", "coverage_digits", "is_digits",
        "vendi_digits", "kid_unbiased_digits", "fd_pixel_pca",
    ]  # fmt: skip
    assert all(row["stderr"] for row in named["rows"] if row["metric"] not in ("fd_pixel_pca",))
    assert {record["extractor"] for record in named["protocols"].values()} == {"digits", "pixel_pca"}
    words = ["fid", "--samples", "fake.npz", "--reference", "real.npz", *JUDGE, "--metrics"]
    fails(call(*words, "fd,kidd"), 2, "did you mean 'kid'")
    fails(call(*words, ","), 2, "names none")


def test_copies_of_training_images(here: Path) -> None:
    words = ["--reference", "real.npz", *JUDGE, "--metrics", "memorisation,authpct"]
    fails(call("fid", "--samples", "fake.npz", *words), 2, "add --held-out DATA")
    found = values(fid(*words, "--held-out", "digits"))
    assert list(found) == ["ct_digits", "authpct_digits"]
    copies = fid_of("real.npz", *words, "--held-out", "fake.npz")
    assert copies["authpct_digits"] == 0.0
    assert copies["ct_digits"] < -5.0


def fid_of(samples: str, *words: str) -> dict[str, float]:
    done = call("fid", "--samples", samples, "--json", *words)
    assert done.exit_code == 0, done.output
    return values(json.loads(done.stdout))  # type: ignore[return-value]


def test_nearest_neighbours_as_a_picture(here: Path) -> None:
    assert (
        call("fid", "--samples", "real.npz", "--reference", "real.npz", *JUDGE, "--neighbours", "n.png").exit_code == 0
    )
    tiles = np.asarray(Image.open("n.png"))
    assert tiles.shape == (10 * 10, 6 * 10)  # ten rows: an image beside five
    assert np.array_equal(tiles[:10, :10], tiles[:10, 10:20])  # of the reference itself the nearest is the same


def test_protocols_side_by_side(here: Path) -> None:
    words = ["--reference", "real.npz", *JUDGE]
    both = fid(*words, "--protocol", "torch-fidelity")
    assert values(both)["fd_digits"] == values(fid(*words))["fd_digits"]
    assert values(both)["is_digits"] != values(fid(*words))["is_digits"]
    [record] = both["protocols"].values()
    assert (record["rules"], record["is_splits"]) == ("torch-fidelity", "10, shuffled, seed 2020")
    [adm] = fid(*words)["protocols"].values()
    assert "rules" not in adm  # of the embedded judge: old rows keep their protocol
    shown = call("fid", "--samples", "fake.npz", *words, "--protocol", "all").stdout
    assert "adm  torch-fidelity" in shown
    assert [line.split()[-1] for line in shown.splitlines() if "precision" in line and "protocol" not in line] == ["-"]
    assert shown.count("protocol ") == 3
    fails(call("fid", "--samples", "fake.npz", "--protocol", "amd"), 2, "'amd' is not one of")


def test_inception_keeps_its_rules_in_the_rows(here: Path) -> None:
    judge = Spatial()
    rows = evaluate(digits("test"), digits("val"), judge, metrics=("fd", "sfd"))
    assert [row.metric for row in rows] == ["fid", "sfid"]
    from repa_eval import results

    [record] = results.records_of(rows).values()
    assert record["rules"] == "adm"
    assert record["precision_recall"].startswith("k=3, squared distances, <=, 10000")


class Spatial(Extractor):
    """As Inception, with two features and three positions."""

    name, digest, has_spatial = "inception", "spatial", True

    def __call__(self, images: torch.Tensor) -> Any:
        from repa_eval.interfaces.extractor import Features

        x = images.float().flatten(1).numpy()
        return Features(x[:, 20:22], x[:, :7], x[:, 30:33])


def test_precision_takes_ten_thousand_reference_images(monkeypatch: pytest.MonkeyPatch) -> None:
    from repa_eval.evaluation import sample_quality as fidelity
    from repa_eval.evaluation.evaluator_rules import PROTOCOLS

    seen = []
    rules = PROTOCOLS["adm"]

    def metric(real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
        seen.append(len(real))
        return {"precision": 1.0, "recall": 1.0}

    monkeypatch.setattr(type(rules), "function", lambda *_: metric)
    evaluate(digits("val"), digits("train").head(10_500), Spatial(), metrics=("precision_recall",))
    evaluate(digits("val"), digits("train").head(9_000), Spatial(), metrics=("precision_recall",))
    assert seen == [10_000, 9_000]
    assert fidelity.ADM.reference_images == 10_000


def test_resize_makes_one_size(here: Path) -> None:
    Path("mixed").mkdir()
    for index in range(20):
        times = 1 if index % 2 else 2
        pixels = np.kron(digits("val").images[index, 0], np.ones((times, times), np.uint8))
        Image.fromarray(pixels).save(f"mixed/{index}.png")
    fails(call("fid", "--samples", "mixed", "--reference", "digits", *JUDGE), 2, "make them equal, or add --resize N")
    answer = json.loads(
        call("fid", "--samples", "mixed", "--reference", "digits", *JUDGE, "--resize", "8", "--json").stdout
    )
    [record] = answer["protocols"].values()
    assert record["input_resize"] == "centre-crop-8"
    order = sorted(range(20), key=lambda index: f"{index}.png")
    images = open_images("mixed", resize=8).pixels(range(20))
    assert np.array_equal(images.numpy(), digits("val").images[order])  # halving undoes the doubling


# --- several processes, batch sizes


@pytest.mark.parametrize("size", [1, 7, 64])
def test_batch_sizes_change_nothing(here: Path, size: int) -> None:
    words = ["--reference", "real.npz", *JUDGE, "--metrics", "fd,inception_score,precision_recall,kid_unbiased"]
    found, usual = values(fid(*words, "--batch-size", str(size))), values(fid(*words))
    for name in ("fd_digits", "is_digits", "kid_unbiased_digits"):
        assert found[name] == pytest.approx(usual[name], rel=1e-6)
    for name in ("precision_digits", "recall_digits"):
        assert found[name] == pytest.approx(usual[name], abs=1 / 300)


def launched(count: int, *words: str) -> dict[str, Any]:
    """The JSON of `repa-eval` in `count` processes."""
    answer: dict[str, Any] = json.loads(torchrun(count, *words, "--device", "cpu", "--json"))
    return answer


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_processes_change_nothing(here: Path, count: int) -> None:
    words = ["fid", "--samples", "fake.npz", "--reference", "real.npz", *JUDGE, "--batch-size", "32"]
    words += ["--metrics", "fd,inception_score,precision_recall,kid_unbiased"]
    alone = json.loads(call(*words, "--json").stdout)
    assert launched(count, *words) == alone


@pytest.mark.slow
def test_statistics_of_several_processes(here: Path) -> None:
    call("stats", "real.npz", "--out", "one.npz", *JUDGE, "--batch-size", "32")
    launched(2, "stats", "real.npz", "--out", "two.npz", *JUDGE, "--batch-size", "32")
    assert Path("one.npz").read_bytes() == Path("two.npz").read_bytes() or np.array_equal(
        np.load("one.npz")["sigma"], np.load("two.npz")["sigma"]
    )


def test_inception_is_the_usual_judge() -> None:
    assert Inception.name == "inception"
    assert Inception.has_spatial
