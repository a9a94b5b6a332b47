"""What a sweep leaves on disk, and a sweep of several processes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from helpers import CPU, digits, files_of, run, tiny, torchrun
from repa_eval import results
from repa_eval.cli import main as repa_eval
from repa_eval.monitors.previews import Preview
from repa_eval.monitors.sample_quality import SampleQuality
from repa_eval.monitors.shared import suites
from repa_eval.monitors.shared.samples import draw
from repa_eval.sampling.generate import SamplerSettings
from repa_eval.train import loop
from repa_eval.train.evaluated import evaluated_run

SMALL = {"max_steps": 6, "checkpoint_every": 2, "num_samples": 16, "num_steps": 2, "split": "train"}


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with the checkpoints 2, 4 and 6, of which only sample quality is measured."""
    run(tiny(**SMALL), tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(suites, "all_monitors", lambda run: [SampleQuality(run), Preview(run)])
    return tmp_path / "mine"


def sweep(folder: Path, *words: str) -> list[results.Row]:
    done = CliRunner().invoke(repa_eval, ["sweep", str(folder), "--device", "cpu", "--json", "--quiet", *words])
    assert done.exit_code == 0, done.output
    return [results.Row(**row) for row in json.loads(done.stdout)["rows"]]


def test_no_samples_stay_unless_asked_for(trained: Path) -> None:
    assert {row.step for row in sweep(trained)} == {2, 4, 6}
    assert not (trained / "samples").exists()


def test_the_newest_samples_stay_and_are_those_that_were_measured(trained: Path) -> None:
    rows = {(row.step, row.metric): row.value for row in sweep(trained, "--keep-samples", "2")}
    names = ["0000004.npz", "0000004.npz.json", "0000006.npz", "0000006.npz.json"]
    assert list(files_of(trained / "samples")) == names
    assert np.load(trained / "samples" / "0000006.npz")["arr_0"].shape == (16, 8, 8, 1)
    again = CliRunner().invoke(repa_eval, ["fid", "--samples", str(trained / "samples" / "0000006.npz"), "--json"])
    assert again.exit_code == 0, again.output
    for row in json.loads(again.stdout)["rows"]:
        assert row["value"] == rows[6, row["metric"]]
        assert (row["run"], row["step"]) == ("mine", 6)


def test_the_reference_is_seen_and_factored_once(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from repa_eval.evaluation import reference
    from repa_eval.metrics import fid

    monkeypatch.setattr(reference, "_kept", {})
    made = []
    plain = fid.Gaussian.__init__
    monkeypatch.setattr(fid.Gaussian, "__init__", lambda self, *given: (made.append(1), plain(self, *given))[1])
    sweep(trained)
    assert len(made) == 2  # one a judge, for three checkpoints


class Half:
    """One of two processes; what the other sends is put in by hand."""

    count, device, first = 2, "cpu", True

    def __init__(self, rank: int, sent: list[object]) -> None:
        self.rank, self.sent = rank, sent

    def of(self, missing: range, batch_size: int) -> list[int]:
        return [index for index in missing if index // batch_size % 2 == self.rank]

    def gather(self, parts: list[object]) -> list[object]:
        self.sent += parts
        return list(self.sent)


def test_two_processes_draw_what_one_draws() -> None:
    recipe = tiny(split="val")
    model = loop.build(recipe, digits("val"), [])[1].model.to(CPU).eval()
    sampler = SamplerSettings(num_steps=2)
    alone = draw(model, 600, sampler)
    sent: list[object] = []
    draw(model, 600, sampler, Half(1, sent))  # type: ignore[arg-type]
    both = draw(model, 600, sampler, Half(0, sent))  # type: ignore[arg-type]
    assert np.array_equal(alone.images, both.images)
    assert np.array_equal(alone.labels, both.labels)


@pytest.mark.slow
def test_a_sweep_of_two_processes_gives_the_same_rows(tmp_path: Path) -> None:
    recipe = tiny("repa", **{**SMALL, "max_steps": 2, "num_samples": 300})
    tables = []
    for count in (1, 2):
        out = tmp_path / str(count) / "mine"
        run(recipe, out)
        torchrun(count, "sweep", out, "--device", "cpu", "--quiet", "--json", "--keep-samples", "1")
        tables.append({row.key(): (row.value, row.stderr) for row in results.read(out)})
        assert list(files_of(out / "samples")) == ["0000002.npz", "0000002.npz.json"]
    assert tables[0] == tables[1]
    assert evaluated_run(recipe, tmp_path / "1" / "mine").columns(2)["run"] == "mine"
