"""Samples that this project did not make: their names, curves from folders, the reference's cached features."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from helpers import digits, torchrun
from repa_eval import results
from repa_eval.cli import main as repa_eval
from repa_eval.evaluation import reference as reference_module
from repa_eval.evaluation.reference_features import ReferenceCache, record_for
from repa_eval.evaluation.sample_features import Gathered, gather
from repa_eval.interfaces.extractor import load_extractor
from repa_eval.metrics.fid import moments
from repa_eval.reports.inputs import collect
from repa_eval.sampling.sample_names import settings_in

FD = ["--extractor", "digits", "--metrics", "fd", "--reference", "real.npz"]
NAMES = ("0000100.npz", "0000200.npz", "SiT-XL-2-0000050-size-256-vae-ema-cfg-1.8-seed-0-sde.npz")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(reference_module, "_kept", {})
    write("real.npz", 0)
    Path("curve").mkdir()
    for place, name in enumerate(("0000200.npz", "0000100.npz", "0000300.npz")):
        write(f"curve/{name}", 1000 * (place + 1))
    return tmp_path


def write(name: str, first: int, count: int = 40) -> None:
    images = digits("train").images[first : first + count]
    np.savez(name, arr_0=images.transpose(0, 2, 3, 1))


def fid(*words: str) -> Result:
    return CliRunner().invoke(repa_eval, ["fid", *FD, *words, "--device", "cpu"])


def answer(*words: str) -> dict[str, Any]:
    done = fid(*words, "--json")
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# --- names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("0050000.npz", (50_000, None, None, None)),
        ("SiT-XL-2-0400000-size-256-vae-ema-cfg-1.8-seed-0-sde.npz", (400_000, 1.8, 0, "sde")),
        ("SiT-XL-2-0400000-size-256-vae-ema-cfg-1.8-seed-3-ode", (400_000, 1.8, 3, "ode")),  # the folder of PNG files
        ("SiT-XL-2-0400000-cfg-1.5-64-ODE-250-dopri5.npz", (400_000, 1.5, None, "ode")),
        ("DiT-XL-2-DiT-XL-2-256x256-size-256-vae-ema-cfg-1.5-seed-0.npz", (None, 1.5, 0, None)),
        ("0400000-of-0500000.npz", (None, None, None, None)),  # which of them is the step?
        ("12345678.npz", (None, None, None, None)),
        ("samples.npz", (None, None, None, None)),
    ],
)
def test_what_a_name_says(name: str, expected: tuple[object, ...]) -> None:
    found = settings_in(Path("somewhere") / name)
    assert tuple(found.get(key) for key in ("step", "cfg_scale", "sampler_seed", "sampler_mode")) == expected
    assert ("step_from" in found, "settings_from" in found) == (expected[0] is not None, expected[1] is not None)


def test_rows_say_which_samples_they_are_of(here: Path) -> None:
    [row], [record] = (list(answer("--samples", "curve/0000100.npz").get(key, ())) for key in ("rows", "protocols"))
    assert (row["run"], row["step"], row["seed"]) == (None, 100, None)
    found = answer("--samples", "curve/0000100.npz")["protocols"][record]
    assert (found["samples"], found["step_from"]) == ("0000100.npz", "file name")
    os.rename("curve/0000100.npz", NAMES[2])
    named = answer("--samples", NAMES[2], "--run", "theirs")
    [row], [settings] = named["rows"], named["protocols"].values()
    assert (row["run"], row["step"], row["seed"]) == ("theirs", 50, 0)
    assert (settings["cfg_scale"], settings["sampler_mode"], settings["settings_from"]) == (1.8, "sde", "file name")
    assert settings["samples_hash"] == found["samples_hash"]
    given = answer("--samples", NAMES[2], "--run", "theirs", "--step", "7")
    assert given["rows"][0]["step"] == 7
    assert "step_from" not in next(iter(given["protocols"].values()))


def test_rows_of_two_sets_are_kept_and_named_in_the_report(here: Path) -> None:
    write("a.npz", 1000)
    write("b.npz", 2000)
    words = ["--run", "theirs", "--step", "100", "--rows", "run/results.jsonl"]
    for name in ("a.npz", "b.npz", "a.npz"):
        answer("--samples", name, *words)
    rows = results.read("run")
    assert len({row.key() for row in rows}) == len(rows) == 2
    inputs = collect(["run"])
    assert {inputs.protocols[row.protocol or ""]["samples"] for row in inputs.rows} == {"a.npz", "b.npz"}
    assert CliRunner().invoke(repa_eval, ["report", "run", "--out", "r.html"]).exit_code == 0
    page = Path("r.html").read_text()
    assert "a.npz" in page
    assert "b.npz" in page


# --- curves


def test_a_folder_of_files_is_one_curve(here: Path) -> None:
    found = answer("--samples", "curve", "--run", "theirs", "--rows", "run/results.jsonl")
    assert [(row["run"], row["step"]) for row in found["rows"]] == [("theirs", step) for step in (100, 200, 300)]
    alone = [answer("--samples", f"curve/0000{step}.npz")["rows"][0]["value"] for step in (100, 200, 300)]
    assert [row["value"] for row in found["rows"]] == alone
    assert len(set(alone)) == 3
    shown = fid("--samples", "curve").stdout.splitlines()
    assert shown[0] == "extractor digits, reference real.npz (40 images)"
    assert [line.split()[:3] for line in shown[2:6]] == [
        ["step", "samples", "n"],
        ["100", "0000100.npz", "40"],
        ["200", "0000200.npz", "40"],
        ["300", "0000300.npz", "40"],
    ]


def test_the_report_draws_one_curve_of_the_files(here: Path) -> None:
    answer("--samples", "curve", "--run", "theirs", "--rows", "run/results.jsonl")
    inputs = collect(["run"])
    assert len({row.protocol for row in inputs.rows}) == 1
    [record] = inputs.protocols.values()
    assert {"samples", "samples_hash"}.isdisjoint(record)
    write("curve/0000300.npz", 9000)  # the last step once more, from other samples
    answer("--samples", "curve", "--run", "theirs", "--rows", "run/results.jsonl")
    inputs = collect(["run"])
    by_step = {step: [row.protocol for row in inputs.rows if row.step == step] for step in (100, 200, 300)}
    assert by_step[100] == by_step[200]
    assert len(by_step[100]) == 1
    assert len(set(by_step[300])) == 2  # neither of them is taken for the point of the curve
    assert set(by_step[300]).isdisjoint(by_step[100])


def test_a_curve_goes_on_where_it_ended(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, words = Path("run/results.jsonl"), ["--samples", "curve", "--rows", "run/results.jsonl"]
    whole = answer(*words)
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(lines[:1]))  # as after a kill
    seen: list[str] = []
    original = gather
    monkeypatch.setattr(
        "repa_eval.evaluation.sample_quality.gather",
        lambda source, *rest, **more: (seen.append(Path(source.name).name), original(source, *rest, **more))[1],
    )
    assert answer(*words)["rows"] == whole["rows"]
    assert seen == ["0000200.npz", "0000300.npz"]
    assert table.read_text().splitlines(keepends=True) == lines
    seen.clear()
    assert answer(*words)["rows"] == whole["rows"]
    assert not seen
    assert len(table.read_text().splitlines()) == 3
    write("curve/0000200.npz", 5000)  # another content under the same name
    answer(*words)
    assert seen == ["0000200.npz"]
    seen.clear()
    answer(*words, "--batch-size", "7")
    assert not seen
    answer(*words, "--resize", "8")  # another protocol
    assert len(seen) == 3


def test_bad_files_are_named_and_the_others_measured(here: Path) -> None:
    Path("curve/0000150.npz").write_bytes(b"PK\x03\x04 no zip")
    np.savez("curve/0000250.npz", mu=np.zeros(3), sigma=np.eye(3))
    content = bytearray(Path("curve/0000300.npz").read_bytes())
    content[len(content) // 2] ^= 255
    Path("curve/0000300.npz").write_bytes(content)
    done = fid("--samples", "curve", "--rows", "run/results.jsonl")
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: curve: 3 of 5 files were not measured: 0000150.npz (")
    assert "0000250.npz (curve/0000250.npz: expected arr_0" in done.stderr
    assert "0000300.npz (" in done.stderr
    assert [row.step for row in results.read("run")] == [100, 200]
    assert [line.split()[0] for line in done.stdout.splitlines()[3:5]] == ["100", "200"]


@pytest.mark.parametrize("words", [["--step", "3"], ["--neighbours", "n.png"]])
def test_options_of_one_set_are_refused_for_a_curve(here: Path, words: list[str]) -> None:
    done = fid("--samples", "curve", *words)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert f"{words[0]}: curve is a folder of several sets of samples; name one of its files" in done.stderr


def test_what_all_files_lack_is_noticed_before_the_first(here: Path) -> None:
    done = CliRunner().invoke(repa_eval, ["fid", "--samples", "curve", "--reference", "none.npz", *FD[:4]])
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "none.npz" in done.stderr
    assert "files were not measured" not in done.stderr


def test_processes_give_the_rows_of_one(here: Path) -> None:
    Path("curve/0000150.npz").write_bytes(b"PK\x03\x04 no zip")
    words = ["fid", "--samples", "curve", *FD, "--batch-size", "16", "--rows"]
    assert fid("--samples", "curve", "--batch-size", "16", "--rows", "one/results.jsonl").exit_code == 1
    Path("curve/0000150.npz").unlink()
    torchrun(2, *words, "two/results.jsonl", "--device", "cpu", "--no-cache")
    assert Path("one/results.jsonl").read_bytes() == Path("two/results.jsonl").read_bytes()


# --- the reference's features


def count_gathered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    original = gather
    monkeypatch.setattr(
        reference_module,
        "gather",
        lambda source, *rest, **more: (seen.append(source.name), original(source, *rest, **more))[1],
    )
    return seen


@pytest.mark.parametrize("kind", ["images", "statistics"])
def test_the_reference_is_seen_once(here: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    if kind == "statistics":
        os.rename("real.npz", "source.npz")
        made = ["stats", "source.npz", "--out", "real.npz", "--extractor", "digits", "--device", "cpu"]
        assert CliRunner().invoke(repa_eval, made).exit_code == 0
    seen = count_gathered(monkeypatch)
    words = ["--samples", "curve", "--metrics", "fd,precision_recall"]
    first = answer(*words)["rows"]
    assert len(seen) == 1
    folder = Path("cache/repa-eval/references")
    [entry] = folder.glob("*.npz")
    monkeypatch.setattr(reference_module, "_kept", {})  # a later call
    assert answer(*words)["rows"] == first
    assert len(seen) == 1
    monkeypatch.setattr(reference_module, "_kept", {})
    answer(*words, "--no-cache")
    assert len(seen) == 2
    monkeypatch.setattr(reference_module, "_kept", {})
    answer(*words, "--cache", "mine")
    assert (len(seen), len(list(Path("mine").glob("*.npz")))) == (3, 1)
    entry.write_bytes(entry.read_bytes()[:-100])
    monkeypatch.setattr(reference_module, "_kept", {})
    assert answer(*words)["rows"] == first  # a damaged entry is made anew
    assert len(seen) == 4


def test_a_cache_of_other_content_is_not_taken(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = count_gathered(monkeypatch)
    words = ["--samples", "curve/0000100.npz"]
    for change in ((), ("--extractor", "pixel_pca"), ("--batch-size", "7"), ("--metrics", "fd,precision_recall")):
        before = len(seen)
        answer(*words, *change)
        assert len(seen) == before + 1, change
    write("real.npz", 3000)
    answer(*words)
    assert len(seen) == 5


def test_a_home_that_cannot_be_written_is_a_warning(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    Path("cache").write_text("a file where the cache would be")
    done = fid("--samples", "curve/0000100.npz")
    assert done.exit_code == 0
    assert "no cache (" in caplog.text
    assert "--cache DIR keeps them on disk" in caplog.text


def test_the_cache_is_bounded(tmp_path: Path) -> None:
    rng, extractor = np.random.default_rng(0), load_extractor("digits")
    kinds = {"keep": ("features",), "stream": ("features",)}
    cache = ReferenceCache(tmp_path, limit=60_000)
    records = [record_for(f"images {place}", 100, extractor, 256, kinds) for place in range(4)]
    rows = rng.normal(size=(100, 8)).astype(np.float32)  # 3,200 bytes of rows, 800 of moments, and headers
    held = Gathered(100, {"features": rows}, {"features": moments(rows)})
    large = Gathered(5000, {"features": np.ones((5000, 8), np.float32)}, {})
    cache.write({**records[0], "n": 5000}, large)
    assert not list(tmp_path.iterdir())  # more than fits
    for record in records[:3]:
        cache.write(record, held)
    size = next(tmp_path.glob("*.npz")).stat().st_size
    small = ReferenceCache(tmp_path, limit=3 * size + 10)
    for place, file in enumerate(small._file(record) for record in records[:3]):
        os.utime(file, (place, place))
    assert small.read(records[0]) is not None  # used just now
    small.write(records[3], held)
    assert [small.read(record) is not None for record in records] == [True, False, True, True]
    again = small.read(records[3])
    assert again is not None
    assert np.array_equal(again.rows["features"], rows)
    assert np.array_equal(again.moments["features"].covariance, held.moments["features"].covariance)
    assert np.array_equal(again.moments["features"].mean, held.moments["features"].mean)
