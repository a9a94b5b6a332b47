"""Monitors: what the registry declares, which of them evaluate a run, and one of the user's in a file of its own."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors.torch import save_file

from helpers import run, tiny
from repa_eval import results
from repa_eval.cli import main as repa_eval
from repa_eval.errors import UserError
from repa_eval.interfaces.monitor import MONITORS, AtSteps, Monitor, monitor
from repa_eval.interfaces.teacher import load_teacher
from repa_eval.monitors.previews import Preview
from repa_eval.monitors.shared import suites
from repa_eval.monitors.shared.run import EvaluatedRun
from repa_eval.train import demo
from repa_eval.train.cli import main as repa_train
from repa_eval.train.evaluated import evaluated_run, monitors_of
from repa_eval.train.recipe import read_recipe, resolve

GENERATED = ["SampleQuality", "RealLevel", "Copies", "Preview"]
COMPARED = ["AlignmentMap", "TokenColours"]
MINE = '''
from repa_eval.interfaces.monitor import Monitor, monitor
from repa_eval.results import make_row


@monitor("weight-norm")
class WeightNorm(Monitor):
    """The norm of the first weight."""

    def __init__(self, run):
        self.run = run

    def __call__(self, step, model):
        norm = float(next(model.parameters()).norm())
        return [make_row(metric="weight_norm", value=norm, protocol={"kind": "weights"}, **self.run.columns(step))]

    def done(self, step, rows):
        return any(row.metric == "weight_norm" and row.step == step for row in rows)
'''


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test registers is forgotten after it."""
    MONITORS.names()
    monkeypatch.setattr(MONITORS, "_objects", dict(MONITORS._objects))
    monkeypatch.setattr(MONITORS, "_origins", dict(MONITORS._origins))


def names(monitors: list[Monitor]) -> list[str]:
    return [type(m.monitor if isinstance(m, AtSteps) else m).__name__ for m in monitors]


def evaluated(method: str, folder: Path, **more: object) -> EvaluatedRun:
    return dataclasses.replace(evaluated_run(tiny(method, split="train"), folder), **more)


@pytest.mark.parametrize(
    ("method", "more", "expected"),
    [
        ("vanilla", {}, [*GENERATED, "Probes"]),
        ("vanilla", {"further_teachers": ("digits-vit",)}, [*GENERATED, "Probes", *COMPARED]),
        ("repa", {}, [*GENERATED, "Probes", *COMPARED]),
        ("gmem", {}, [*GENERATED, "Interpolations", "Probes", *COMPARED]),
        ("gmem", {"generates": False}, ["Probes", *COMPARED]),
    ],
)
def test_a_sweep_takes_what_the_run_has_the_needs_of(
    method: str, more: dict[str, object], expected: list[str], tmp_path: Path
) -> None:
    assert names(suites.all_monitors(evaluated(method, tmp_path, **more))) == expected


def test_what_is_left_out_for_want_of_a_null_label_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = evaluated("repa", tmp_path)
    assert "Probes" in names(suites.all_monitors(run))
    assert not caplog.messages
    run = dataclasses.replace(run, network=dataclasses.replace(run.network, has_null_label=False))
    assert "Probes" not in names(suites.all_monitors(run))
    said = f"{run.name}: probes left out, which need a null label; its model has none"
    assert caplog.messages == [said]


def test_the_trainer_takes_the_quick_ones(tmp_path: Path) -> None:
    assert names(monitors_of(tiny("repa", eval_every=2), tmp_path)) == ["SampleQuality", "Preview"]
    assert monitors_of(tiny("repa", eval_every=0), tmp_path) == []
    assert monitors_of(tiny("classifier", eval_every=2), tmp_path) == []  # an encoder generates nothing
    assert monitors_of(tiny("gmem", eval_every=2, bank_form="none"), tmp_path) == []
    *_, last = monitors_of(tiny("gmem", eval_every=2), tmp_path)
    assert isinstance(last, AtSteps)
    assert names([last]) == ["Interpolations"]
    assert last.steps == {6}


@pytest.mark.parametrize("model", demo.MODELS)
def test_the_demo_compares_every_model_with_the_trained_teacher(model: str, tmp_path: Path) -> None:
    monitors = demo.demo_monitors(demo.demo_recipe(model, 0, 1500), tmp_path, "cpu")
    quick = ["SampleQuality", "Preview", "RealLevel", "Copies"]
    assert names(monitors) == [*quick, "AlignmentMap", "Probes", "TokenColours"]
    *_, maps, _, colours = monitors
    assert isinstance(maps, AtSteps)
    assert isinstance(colours, AtSteps)
    assert maps.steps == colours.steps == {300, 700, 1500}
    own = ["digits-vit-random"] if model == "repa-random" else []
    assert [teacher.name for teacher in maps.monitor.run.reference_teachers] == ["digits-vit", *own]
    assert colours.monitor.teacher.name == ["digits-vit", *own][-1]


def test_a_monitor_at_some_steps(tmp_path: Path) -> None:
    class Both(Monitor):
        shared = True

        def __call__(self, step: int, model: object) -> list[results.Row]:
            return [results.make_row(metric="m", value=step)]

        def done(self, step: int, rows: object) -> bool:
            return False

    some = AtSteps(Both(), {4})
    assert some.shared
    assert [list(some(step, None)) == [] for step in (2, 4)] == [True, False]
    assert [some.done(step, []) for step in (2, 4)] == [True, False]


def test_the_facts_of_a_run(tmp_path: Path) -> None:
    run = evaluated_run(tiny("gmem", num_samples=40, final_samples=80, final_num_steps=7), tmp_path / "mine")
    assert run.columns(3) == {
        "run": "mine", "system": "GMem", "method": "gmem", "step": 3, "weights": "ema", "train_seed": 0,
    }  # fmt: skip
    assert run.network.draws_snippets
    assert run.bank == "the checkpoint's, full"
    assert [[(r.num_samples, r.num_steps) for r in run.rounds(step)] for step in (5, 6)] == [
        [(40, 16)],
        [(40, 16), (80, 7)],
    ]
    assert run.picture("pca", 12) == tmp_path / "mine" / "media" / "pca-0000012.png"
    assert evaluated_run(tiny("reg"), tmp_path).network.has_class_token
    assert not evaluated_run(tiny("repa"), tmp_path).network.has_class_token


def test_a_run_is_compared_with_the_weights_that_it_was_trained_with(tmp_path: Path) -> None:
    other = load_teacher("digits-vit-random")
    file = tmp_path / "other.safetensors"
    save_file(other.network.state_dict(), file)
    recipe = tiny("repa", teacher_weights=str(file))
    first, second = evaluated_run(recipe, tmp_path, further_teachers=["digits-vit-random"]).reference_teachers
    assert (first.name, second.name, second.digest) == ("digits-vit-random", "digits-vit", other.digest)
    [shipped] = evaluated_run(tiny(), tmp_path, further_teachers=["digits-vit"]).reference_teachers
    assert shipped.digest == load_teacher("digits-vit").digest != other.digest


def test_blocks_of_a_unet_are_counted_over_its_stages(tmp_path: Path) -> None:
    recipe = resolve(read_recipe("digits-urepa"), {"model": "U-DiT-S"})
    assert evaluated_run(recipe, tmp_path).network.depth == sum(recipe.architecture.depth) == 22


@pytest.mark.usefixtures("registry")
def test_sweep_and_the_trainer_run_a_monitor_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "weight_norm.py"
    file.write_text(MINE)
    assert MONITORS.load_file(file) == "weight-norm"
    for name in set(MONITORS.names()) - {"weight-norm", "preview"}:
        del MONITORS._objects[name]
    run(tiny("repa", num_samples=16), tmp_path / "swept")
    rows = sweep(tmp_path / "swept")
    assert [(row["step"], row["metric"], row["method"]) for row in rows] == [
        (3, "weight_norm", "repa"),
        (6, "weight_norm", "repa"),
    ]
    assert sweep(tmp_path / "swept") == []
    assert rows[0]["protocol"] in results.read_protocols(tmp_path / "swept")
    words = ["--recipe", "digits-vanilla", "--out", str(tmp_path / "trained"), "--device", "cpu", "--quiet"]
    small = ["max_steps=4", "eval_every=2", "depth=1", "hidden_size=32", "num_heads=2", "batch_size=8", "split=val"]
    done = CliRunner().invoke(repa_train, [*words, *small])
    assert done.exit_code == 0, done.output
    assert [row.step for row in results.read(tmp_path / "trained")] == [2, 4]


def sweep(folder: Path) -> list[dict[str, object]]:
    done = CliRunner().invoke(repa_eval, ["sweep", str(folder), "--device", "cpu", "--json", "--quiet"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)["rows"]


@pytest.mark.usefixtures("registry")
def test_the_order_of_monitors_is_declared() -> None:
    orders = [entry.order for _, entry in MONITORS.items()]
    assert sorted(orders) == list(range(10, 90, 10))


@pytest.mark.usefixtures("registry")
def test_a_wrong_declaration_is_one_line() -> None:
    with pytest.raises(
        UserError, match="'odd' needs 'gpu'; the known needs are samples, teachers, memory bank, null label"
    ):
        monitor("odd", needs=["gpu"])
    with pytest.raises(UserError, match="monitor 'half': the class Half must define done"):

        @monitor("half")
        class Half(Monitor):
            def __call__(self, step: int, model: object) -> list[results.Row]:
                return []

    with pytest.raises(UserError, match="'preview' is registered twice"):
        monitor("preview")(Preview)
