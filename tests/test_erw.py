"""ERW: two stages in one run, the hand-over between them, each stage alone, and exact resuming across the border."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from helpers import batches_of, equal_trees, files_of, run, save_small_data, steps_of, tiny
from repa_eval import checkpoints, results
from repa_eval.cli import main
from repa_eval.errors import Failure, UserError
from repa_eval.results import Row, make_row
from repa_eval.train import loop, state
from repa_eval.train.methods.erw import ERW, fading, published_start
from repa_eval.train.recipe import Recipe, resolve

BORDER = 3


def recipe_of(data: str, **changes: Any) -> Recipe:
    short = {"stage1_steps": BORDER, "max_steps": 8, "checkpoint_every": 2, "learning_rate": 1e-2, "split": "train"}
    return tiny("erw", **{**short, "data": data, **changes})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_small_data(tmp_path_factory.mktemp("data") / "small.npz")


@pytest.fixture(scope="module")
def whole(data: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """The run of both stages that never stopped."""
    recipe, out = recipe_of(data), tmp_path_factory.mktemp("erw") / "run"
    run(recipe, out)
    return recipe, out


def at(out: Path, step: int) -> dict[str, Any]:
    return state.load_checkpoint(state.checkpoint_path(out, step))


def curve(out: Path, metric: str) -> dict[int, float]:
    return {row.step: row.value for row in results.read(out / "log.jsonl") if row.metric == metric}


# --- one command


def test_the_files_of_both_stages(whole: tuple[Recipe, Path]) -> None:
    _, out = whole
    assert sorted(path.stem for path in (out / "checkpoints").iterdir()) == [f"{step:07d}" for step in (2, 3, 4, 6, 8)]
    for step, (warmup, depth) in {2: (True, 1), 3: (True, 1), 4: (False, 2), 8: (False, 2)}.items():
        opened = checkpoints.load(state.checkpoint_path(out, step))
        assert (opened.model.config.warmup, opened.model.depth) == (warmup, depth)
        assert (opened.systems, opened.option("encoder_depth")) == (("ERW",), 1)
        assert (opened.model.feat_rope is None) == warmup
    record = json.loads((out / "run.json").read_text())
    assert (record["status"], record["step"], record["max_steps"]) == ("done", 8, 8)


def test_the_stub_is_measured_but_not_sampled(whole: tuple[Recipe, Path], tmp_path: Path) -> None:
    file = str(state.checkpoint_path(whole[1], BORDER))
    words = ["--num", "2", "--device", "cpu", "--quiet", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(main, ["sample", "--ckpt", file, *words])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "the stub of ERW's first stage, which generates nothing" in done.stderr
    quick = ["--timesteps", "0.1", "--num-images", "20", "--device", "cpu", "--quiet", "--no-cache", "--json"]
    done = CliRunner().invoke(main, ["align", "--ckpt", file, "--data", whole[0].settings.data, *quick])
    assert done.exit_code == 0, done.stderr
    assert {row["layer"] for row in json.loads(done.stdout)["rows"]} == {1}
    shown = json.loads(CliRunner().invoke(main, ["inspect", file, "--json"]).stdout)
    assert (shown["systems"], shown["depth"], shown["model"]) == (["ERW"], 1, "SiT-ERW-digits/2, first 1 blocks")


def test_the_curves_of_both_stages(whole: tuple[Recipe, Path]) -> None:
    _, out = whole
    assert sorted(curve(out, "proj_loss")) == list(range(1, 9))
    assert sorted(curve(out, "denoising_loss")) == list(range(BORDER + 1, 9))
    rates = [curve(out, "learning_rate")[step] for step in range(1, 9)]
    assert rates == pytest.approx([5e-3, 1e-2, 1e-2, 5e-3, 1e-2, 1e-2, 1e-2, 1e-2])  # each stage warms up


def test_the_optimiser_is_not_carried(whole: tuple[Recipe, Path]) -> None:
    _, out = whole
    for step, updates in {2: 2, 3: 3, 4: 1, 8: 5}.items():
        assert {float(entry["step"]) for entry in at(out, step)["opt"]["state"].values()} == {updates}


def test_stage_2_starts_from_the_trained_weights_and_so_does_its_average(data: str, tmp_path: Path) -> None:
    warm = run(recipe_of(data, stage="warmup", max_steps=BORDER), tmp_path / "warm")
    still = recipe_of(data, stage="full", start_from=str(warm), learning_rate=0, max_steps=1, checkpoint_every=1)
    given, saved = state.load_checkpoint(warm), state.load_checkpoint(run(still, tmp_path / "full"))
    _, fresh, _, _ = steps_of(still)
    start = fresh.model.state_dict()
    moved = 0
    for name, value in saved["model"].items():
        source = given["model"].get(name, start[name])
        assert torch.equal(value, source), name
        torch.testing.assert_close(saved["ema"][name], source, rtol=1e-6, atol=1e-7)
        moved += name in given["model"] and not torch.equal(value, start[name])
    assert moved > 20
    assert any(not torch.equal(given["model"][name], given["ema"][name]) for name in given["model"])


def test_the_placement_moves_the_blocks(data: str, tmp_path: Path) -> None:
    warm = run(recipe_of(data, stage="warmup", max_steps=BORDER), tmp_path / "warm")
    still = {"stage": "full", "start_from": str(warm), "learning_rate": 0, "max_steps": 1, "checkpoint_every": 1}
    saved = state.load_checkpoint(run(recipe_of(data, placement=1, **still), tmp_path / "full"))["model"]
    given = state.load_checkpoint(warm)["model"]
    for part in ("attn.qkv.weight", "mlp.fc2.bias"):
        assert torch.equal(saved[f"blocks.1.{part}"], given[f"blocks.0.{part}"])
        assert not torch.equal(saved[f"blocks.0.{part}"], given[f"blocks.0.{part}"])
    assert torch.equal(saved["x_embedder.proj.weight"], given["x_embedder.proj.weight"])


# --- each stage alone


def test_the_stages_alone_are_those_of_the_whole(whole: tuple[Recipe, Path], data: str, tmp_path: Path) -> None:
    _, out = whole
    warm = run(recipe_of(data, stage="warmup", max_steps=BORDER), tmp_path / "warm")
    alone, border = state.load_checkpoint(warm), at(out, BORDER)
    for part in ("model", "ema", "opt"):
        assert equal_trees(alone[part], border[part]), part
    assert alone["recipe"]["options"] == border["recipe"]["options"]
    full = run(recipe_of(data, stage="full", start_from=str(warm), max_steps=5), tmp_path / "full")
    assert curve(tmp_path / "full", "learning_rate")[1] == pytest.approx(5e-3)
    assert checkpoints.load(full).model.depth == 2
    assert state.load_checkpoint(full)["recipe"]["start_from"] == str(warm)


def test_stage_2_without_a_first_stage_is_a_control(data: str, tmp_path: Path) -> None:
    last = run(recipe_of(data, stage="full", max_steps=2), tmp_path / "run")
    assert checkpoints.load(last).model.config.use_rope


def test_what_does_not_fit_is_refused(whole: tuple[Recipe, Path], data: str, tmp_path: Path) -> None:
    _, out = whole
    files = {step: str(state.checkpoint_path(out, step)) for step in (BORDER, 8)}
    for text, changes in {
        "start_from: this run has stages": {"start_from": files[BORDER]},
        "does not exist|no such file": {"stage": "full", "start_from": "nothing.pt"},
        "a stage lasts until step 8, and max_steps 8 ends before it": {"stage1_steps": 8},
        "placement 2 and l2r_depth 1: this model has 2 blocks": {"placement": 2},
    }.items():
        with pytest.raises(UserError, match=text):
            run(recipe_of(data, **changes), tmp_path / "run")
        assert not (tmp_path / "run" / "run.json").exists()
    stub = resolve(at(out, BORDER)["recipe"], {"stage": "full"})
    with pytest.raises(UserError, match="holds the architecture of stage 1"):
        run(stub, tmp_path / "run")


# --- exact


@pytest.mark.parametrize("kept", [0, 2, BORDER, 4])
def test_resuming_is_exact_across_the_border(whole: tuple[Recipe, Path], tmp_path: Path, kept: int) -> None:
    recipe, out = whole
    again = tmp_path / "run"
    shutil.copytree(out, again)
    for file in (again / "checkpoints").glob("*.pt"):
        if int(file.stem) > kept:
            file.unlink()
    run(recipe, again, resume=True)
    mine, theirs = files_of(again), files_of(out)
    assert sorted(mine) == sorted(theirs)
    assert [name for name in mine if name.startswith("checkpoints") and mine[name] != theirs[name]] == []


@pytest.mark.parametrize("stop", [1, BORDER, 5])
def test_stopping_at_any_step_and_continuing_is_exact(
    whole: tuple[Recipe, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    recipe, out = whole
    asked: list[int] = []

    @contextlib.contextmanager
    def pressed() -> Iterator[Any]:
        yield lambda: asked.append(1) or len(asked) == stop

    monkeypatch.setattr(loop, "interruptible", pressed)
    with pytest.raises(loop.Interrupted, match=f"stopped at step {stop}"):
        run(recipe, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"
    last = run(recipe, tmp_path / "run", resume=True)
    assert last.read_bytes() == state.checkpoint_path(out, 8).read_bytes()


@pytest.mark.parametrize("start", ["stage 1", "start_from"])
def test_moments_that_the_second_stage_lacks_are_refused(
    whole: tuple[Recipe, Path], data: str, tmp_path: Path, start: str
) -> None:
    """Its parameters began as those of the first stage, so that the weights of a fresh model say nothing of them."""
    recipe, out, last = whole[0], tmp_path / "run", 6
    if start == "stage 1":
        shutil.copytree(whole[1], out)
        state.checkpoint_path(out, 8).unlink()
    else:
        source = tmp_path / "stub.pt"
        shutil.copy(state.checkpoint_path(whole[1], BORDER), source)
        recipe = recipe_of(data, stage="full", start_from=str(source), max_steps=6)
        run(recipe, out)
    saved = at(out, last)
    saved["opt"]["state"].popitem()
    torch.save(saved, state.checkpoint_path(out, last))
    record = json.loads((out / "run.json").read_text()) | {"status": "running"}
    (out / "run.json").write_text(json.dumps(record))
    with pytest.raises(Failure, match=r"0000006\.pt is damaged: opt lacks moments of parameters that were trained"):
        run(recipe, out, resume=True)


def test_a_run_with_another_border_is_refused(whole: tuple[Recipe, Path], data: str, tmp_path: Path) -> None:
    shutil.copytree(whole[1], tmp_path / "run")
    with pytest.raises(UserError, match="stage1_steps"):
        run(recipe_of(data, stage1_steps=4), tmp_path / "run", resume=True)


def test_nothing_is_measured_of_the_stub(data: str, tmp_path: Path) -> None:
    seen: list[int] = []

    def monitor(step: int, model: Any) -> Iterator[Row]:
        assert not model.config.warmup
        seen.append(step)
        yield make_row(metric="depth", value=float(model.depth), step=step)

    recipe = recipe_of(data, eval_every=1)
    run(recipe, tmp_path / "run", monitors=[monitor])
    assert seen == [4, 5, 6, 7, 8]
    state.checkpoint_path(tmp_path / "run", 8).unlink()
    run(recipe, tmp_path / "run", monitors=[monitor], resume=True)
    assert seen == [4, 5, 6, 7, 8, 7, 8]


# --- the losses


def test_stage_1_sees_clean_latents_at_time_0(data: str) -> None:
    recipe, objective, images, teachers = steps_of(recipe_of(data, stage="warmup", cfg_prob=0.5))
    [batch] = batches_of(recipe, images, teachers)
    seen: list[torch.Tensor] = []
    objective.model.register_forward_pre_hook(lambda _model, given: seen.extend(given))
    assert list(recipe.method.losses(objective.model, batch, 0)) == ["proj_loss"]
    x, t, y = seen
    assert torch.equal(x, batch.x)
    assert torch.equal(t, torch.zeros(8))
    assert torch.equal(y, torch.where(batch.draws["drop"] < 0.5, 10, batch.y))
    assert 0 < int((y == 10).sum()) < 8
    assert objective.model.feat_rope is None


def test_the_published_warm_up_counts_the_last_sample_alone(data: str) -> None:
    values = {}
    for rule in ("mean", "last-sample"):
        recipe, objective, images, teachers = steps_of(recipe_of(data, stage="warmup", warmup_loss=rule))
        [batch] = batches_of(recipe, images, teachers)
        before = recipe.method.losses(objective.model, batch, 0)["proj_loss"]
        batch.teachers[0][:-1] *= -1  # of every sample but the last
        values[rule] = before, recipe.method.losses(objective.model, batch, 0)["proj_loss"]
    assert torch.equal(*values["last-sample"])
    assert not torch.allclose(*values["mean"])


def test_the_weight_fades(data: str) -> None:
    options = {"stage1_steps": 10, "max_steps": 40, "half_life": 5, "start_coeff": 2.0, "encoder_depth": 1}
    recipe, objective, images, teachers = steps_of(recipe_of(data, **options))
    [batch] = batches_of(recipe, images, teachers)
    losses = {step: recipe.method.losses(objective.model, batch, step)["proj_loss"] for step in (10, 15, 30)}
    alone = dataclasses.replace(recipe.method, stage="full")  # its steps count from the start of stage 2
    torch.testing.assert_close(losses[10], alone.losses(objective.model, batch, 0)["proj_loss"])
    torch.testing.assert_close(losses[15], losses[10] / 2)
    torch.testing.assert_close(losses[30], losses[10] / 16)
    assert [fading(6.0, step, warmup=100_000) for step in (0, 100_000, 150_000, 300_000)] == [6.0, 6.0, 3.0, 0.375]
    assert [published_start(width) for width in (384, 768, 1024, 1152)] == [1.0, 1.0, 3.0, 6.0]
    assert ERW().start_coeff == 0  # that of the size
