"""The whole line on the embedded data: train, align, probe, sample, judge, report; and the demo, made small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from repa_eval import results
from repa_eval.cli import main as repa_eval
from repa_eval.commands import demo as demo_command
from repa_eval.monitors import alignment
from repa_eval.probes import splits
from repa_eval.train import demo
from repa_eval.train.cli import main as repa_train


def call(*words: str) -> str:
    done = CliRunner().invoke(repa_eval, list(words))
    assert done.exit_code == 0, done.output
    return done.stdout


def test_train_align_probe_sample_judge_report(tmp_path: Path) -> None:
    run, samples, page = tmp_path / "run", tmp_path / "samples", tmp_path / "report.html"
    words = ["--recipe", "digits-repa", "--out", str(run), "--device", "cpu", "max_steps=5", "eval_every=0"]
    trained = CliRunner().invoke(repa_train, [*words, "final_samples=0", "num_samples=40", "evaluation.num_steps=2"])
    assert trained.exit_code == 0, trained.output
    ckpt = str(run / "checkpoints" / "0000005.pt")
    common = ["--ckpt", ckpt, "--layer", "3", "--timesteps", "0.1", "--device", "cpu", "--rows"]
    call("align", *common, str(run / "results.jsonl"), "--num-images", "40")
    call("probe", *common, str(run / "results.jsonl"))
    call("sample", "--ckpt", ckpt, "--num", "40", "--num-steps", "2", "--out", str(samples), "--device", "cpu")
    call("fid", "--samples", str(samples), "--rows", str(run / "results.jsonl"), "--device", "cpu")
    found = {row.metric for row in results.read(run)}
    assert found >= {"cknna", "cka", "probe_accuracy", "knn_accuracy", "fd_digits", "is_digits", "precision_digits"}
    assert set(results.read_protocols(run)) >= {row.protocol for row in results.read(run) if row.protocol}
    call("report", str(run), "--out", str(page))
    text = page.read_text(encoding="utf-8")
    assert "cknna" in text
    assert "fd_digits" in text


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo as it is, with few images."""
    monkeypatch.setattr(demo_command, "MIN_STEPS", 1)
    monkeypatch.setattr(alignment, "MAP_IMAGES", 40)
    monkeypatch.setattr(splits, "PROBE_TRAIN", 60)
    monkeypatch.setattr(splits, "PROBE_TEST", 30)
    made = demo.demo_recipe

    def fewer(model: str, seed: int, steps: int) -> object:
        from repa_eval.train.recipe import resolve

        changes = {"batch_size": 8, "num_samples": 32, "final_samples": 32, "evaluation.num_steps": 2}
        return resolve(made(model, seed, steps).to_dict(), {**changes, "final_num_steps": 2})

    monkeypatch.setattr(demo, "demo_recipe", fewer)


@pytest.mark.usefixtures("small")
def test_the_demo_and_its_second_call(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    answer = json.loads(call("demo", "--steps", "20", "--out", str(out), "--quiet", "--json"))
    assert [Path(run).name for run in answer["runs"]] == ["vanilla", "repa", "repa-random"]
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    page = (out / "report.html").read_text(encoding="utf-8")
    # the report says what the control is, where a reader looks first
    assert "random weights" in page[: page.index("Final values")]
    for arm, teachers in (("repa", {"digits-vit"}), ("repa-random", {"digits-vit", "digits-vit-random"})):
        records = results.read_protocols(out / arm)
        used = {records[row.protocol]["teacher"] for row in results.read(out / arm) if row.metric == "cknna"}
        assert used == teachers
        assert json.loads((out / arm / "run.json").read_text())["control"] is (arm == "repa-random")
    call("demo", "--steps", "20", "--out", str(out), "--quiet")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    other = CliRunner().invoke(repa_eval, ["demo", "--steps", "24", "--out", str(out), "--quiet"])
    assert other.exit_code == 2
    assert "choose another --out" in other.stderr


@pytest.mark.usefixtures("small")
def test_arms_are_paired(tmp_path: Path) -> None:
    """All arms start from the same weights and see the same images, noise and times; the teacher alone differs."""
    from repa_eval.interfaces.images import load_data
    from repa_eval.interfaces.teacher import load_teacher
    from repa_eval.train.loop import build

    states = {}
    for arm in demo.MODELS:
        recipe = demo.demo_recipe(arm, 0, 20)
        teachers = [load_teacher(name) for name in recipe.method.teachers()]
        _, objective = build(recipe, load_data("digits", "train"), teachers)
        states[arm] = objective.model.state_dict()
    shared = [name for name in states["vanilla"] if not name.startswith("projectors")]
    for arm in ("repa", "repa-random"):
        assert all((states[arm][name] == states["vanilla"][name]).all() for name in shared)
    assert all((states["repa"][name] == states["repa-random"][name]).all() for name in states["repa"])
