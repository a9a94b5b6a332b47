"""The list of methods, and the example of docs/methods.md: a file elsewhere trains, is measured, is in the report."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from helpers import DOCS, MY_LOSS
from repa_eval import results
from repa_eval.cli import main as repa_eval
from repa_eval.interfaces.method import METHODS
from repa_eval.monitors import alignment
from repa_eval.plugin_files import installed, loading
from repa_eval.probes import splits
from repa_eval.train.cli import main as repa_train
from repa_eval.train.listing import cost_table, describe_methods, show
from repa_eval.train.recipe import builtin_recipes

SMALL = ["depth=2", "hidden_size=32", "num_heads=2", "max_steps=4", "checkpoint_every=4", "batch_size=8", "split=val"]
SMALL += ["eval_every=4", "evaluation.num_samples=16", "evaluation.num_steps=2", "final_samples=0", "log_every=1"]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the user's with the docs' example."""
    monkeypatch.setattr(alignment, "MAP_IMAGES", 20)
    for name, count in {"PROBE_TRAIN": 60, "PROBE_TEST": 30}.items():
        monkeypatch.setattr(splits, name, count)
    (tmp_path / "my_loss.py").write_text(MY_LOSS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evaluate(*words: str) -> Result:
    return CliRunner().invoke(repa_eval, [*words])


def test_the_example_is_complete_and_short() -> None:
    assert 30 < len(MY_LOSS.splitlines()) <= 40
    assert max(map(len, MY_LOSS.splitlines())) <= 120


def test_a_file_elsewhere_trains_is_measured_and_is_in_the_report(elsewhere: Path) -> None:
    words = ["--method", "./my_loss.py", "--out", "runs/mine", "--device", "cpu", "--quiet", *SMALL]
    done = CliRunner().invoke(repa_train, words)
    assert done.exit_code == 0, done.stderr
    ckpt = "runs/mine/checkpoints/0000004.pt"
    # another process would not know the method
    for plugin in loading.loaded():
        loading.unload(plugin)
    quick = ["--timesteps", "0.1", "--num-images", "20", "--device", "cpu", "--quiet"]
    aligned = evaluate("align", "--ckpt", ckpt, "--teacher", "digits-vit", *quick, "--rows", "runs/mine/results.jsonl")
    assert aligned.exit_code == 0, aligned.stderr
    unknown = evaluate("sweep", "runs/mine", "--device", "cpu", "--quiet")
    assert unknown.exit_code == 2
    assert "unknown method 'my-huber'" in unknown.stderr
    swept = evaluate("sweep", "runs/mine", "--method", "./my_loss.py", "--device", "cpu", "--quiet")
    assert swept.exit_code == 0, swept.stderr
    rows = results.read(Path("runs/mine"))
    assert {row.method for row in rows if row.step} == {"my-huber"}
    assert {"fd_digits", "cknna", "probe_accuracy"} <= {row.metric for row in rows}
    assert evaluate("report", "runs/mine", "--out", "report.html").exit_code == 0
    page = Path("report.html").read_text(encoding="utf-8")
    assert "mine" in page
    assert "my-huber" in page or "huber_loss" in page


def test_a_packages_method_is_found_by_its_entry_point(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(elsewhere)
    entry = EntryPoint("mine", "my_loss", "repa_eval.methods")
    monkeypatch.setattr(installed, "entry_points", lambda group: [entry] * (group == "repa_eval.methods"))
    installed.forget_installed()
    shown = CliRunner().invoke(repa_train, ["--method", "my-huber", "--dry-run", "--json"])
    assert shown.exit_code == 0, shown.stderr
    assert json.loads(shown.stdout)["method"] == "my-huber"
    assert "my-huber" in show()


# --- the list


def test_every_method_is_listed_with_what_it_needs() -> None:
    entries, text = describe_methods(), show()
    assert list(entries) == METHODS.names()
    for name, cls in METHODS.items():
        entry = entries[name]
        assert entry["sentence"].endswith(".")
        assert entry["paper"] == cls.paper
        assert ("teacher" in entry["needs"]) == bool(cls().teachers())
        [line] = [line for line in text.splitlines() if line.split()[:1] == [name]]
        assert entry["sentence"] in line
        assert not cls.paper or f"arXiv {cls.paper}" in line
        assert "cost" in line
    assert entries["repa"]["needs"] == ["teacher", "labels"]
    assert entries["ssl"]["needs"] == []


def test_costs_are_measured_for_every_method() -> None:
    table = cost_table()
    assert sorted(table["relative"]) == METHODS.modules()
    assert table["relative"][table["baseline"]] == {"": 1.0}
    assert all(0.1 < ratio < 10 for parts in table["relative"].values() for ratio in parts.values())
    assert table["measured"]
    assert list(table["relative"]["erw"]) == ["stage 1", "stage 2"]


@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_and_its_recipes_are_in_the_docs(name: str) -> None:
    assert f"`{name}`" in DOCS


def test_recipes_named_in_the_docs_exist() -> None:
    import re

    named = set(re.findall(r"`((?:digits|imagenet)[-/][\w/-]+?)(\.\.\.)?`", DOCS))
    assert len(named) >= 8
    for recipe, begun in named - {("digits-vit-random", "")}:
        assert any(known.startswith(recipe) if begun else known == recipe for known in builtin_recipes()), recipe
