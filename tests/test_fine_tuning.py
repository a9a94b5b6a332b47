"""Runs that begin with somebody's weights, checkpoints for the official scripts, and which checkpoints stay."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import official_files
from helpers import equal_trees, run, save_small_data, tiny
from repa_eval import checkpoints
from repa_eval.errors import UserError
from repa_eval.interfaces.architecture import find_preset
from repa_eval.interfaces.method import take_over_weights
from repa_eval.train import progress, state
from repa_eval.train.cli import main
from repa_eval.train.recipe import Recipe, kept_steps

SMALL = ["depth=2", "hidden_size=32", "num_heads=2", "encoder_depth=1", "batch_size=8", "eval_every=0", "split=train"]
SMALL += ["final_samples=0"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_small_data(tmp_path_factory.mktemp("data") / "small.npz")


def recipe_of(data: str, method: str = "repa", **more: Any) -> Recipe:
    return tiny(method, **{"data": data, "split": "train", "max_steps": 2, "checkpoint_every": 1, **more})


def repa_train(*words: str) -> Any:
    return CliRunner().invoke(main, [*words, "--device", "cpu"])


# --- start_from


def test_a_run_begins_with_the_averaged_weights_of_another(data: str, tmp_path: Path) -> None:
    first = run(recipe_of(data), tmp_path / "first")
    given = state.load_checkpoint(first)
    still = {"start_from": str(first), "learning_rate": 0, "max_steps": 1}
    saved = state.load_checkpoint(run(recipe_of(data, **still), tmp_path / "second"))
    assert equal_trees(saved["model"], given["ema"])
    for name, tensor in saved["ema"].items():
        torch.testing.assert_close(tensor, given["ema"][name])
    assert saved["recipe"]["start_from"] == str(first)
    [step] = {float(entry["step"]) for entry in saved["opt"]["state"].values()}
    assert step == 1


@pytest.mark.parametrize(("before", "after"), [("vanilla", "repa"), ("repa", "haste"), ("repa", "vanilla")])
def test_what_fits_is_taken_and_what_is_fresh_is_named(
    before: str, after: str, data: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = run(recipe_of(data, before), tmp_path / "first")
    still = {"start_from": str(first), "learning_rate": 0, "max_steps": 1}
    saved = state.load_checkpoint(run(recipe_of(data, after, **still), tmp_path / "second"))["model"]
    given = state.load_checkpoint(first)["ema"]
    assert all(torch.equal(saved[name], tensor) for name, tensor in given.items() if name in saved)
    assert bool(re.search("fresh are projectors.0.0.bias", caplog.text)) == (set(saved) > set(given))


def test_official_weights_are_a_start(data: str, tmp_path: Path) -> None:
    size = {"depth": 6, "hidden_size": 64, "num_heads": 4}  # that bare weights are known by
    mine = checkpoints.load(run(recipe_of(data, **size), tmp_path / "first")).network
    with torch.no_grad():
        for parameter in mine.parameters():
            parameter.normal_()
    args = {**official_files.REPA, "model": "SiT-digits/2"}
    official = official_files.trainer_file(tmp_path / "0400000.pt", mine.state_dict(), **args)
    bare = tmp_path / "last.pt"
    torch.save(mine.state_dict(), bare)
    for number, start in enumerate((official, bare)):
        still = {"start_from": str(start), "learning_rate": 0, "max_steps": 1, **size}
        saved = state.load_checkpoint(run(recipe_of(data, **still), tmp_path / f"run{number}"))["model"]
        assert equal_trees(dict(saved), {name: tensor.detach() for name, tensor in mine.state_dict().items()})


def test_a_network_that_does_not_fit_is_no_start(data: str, tmp_path: Path) -> None:
    first = run(recipe_of(data), tmp_path / "first")
    with pytest.raises(UserError, match=r"start_from: a SiT cannot be trained on as SiT: only \d+% of its weights fit"):
        run(recipe_of(data, start_from=str(first), hidden_size=64), tmp_path / "wide")
    with pytest.raises(UserError, match=r"checkpoint 'nothing\.pt' does not exist"):
        run(recipe_of(data, start_from="nothing.pt"), tmp_path / "none")
    assert not (tmp_path / "none").exists()
    lightning, sit = (
        find_preset(size)[0].build(find_preset(size)[1]) for size in ("LightningDiT-digits/2", "SiT-digits/2")
    )
    with pytest.raises(UserError, match=r"it predicts something else|of its weights fit"):
        take_over_weights(sit, lightning)


# --- export


def test_the_export_is_what_the_official_trainer_would_have_saved(data: str, tmp_path: Path) -> None:
    golden = official_files.shapes("haste/state_dict_SiT-B_2")
    words = ["--recipe", "digits-repa", "--out", str(tmp_path / "run"), "--quiet", "--export", "official", "--json"]
    words += [f"data={data}", *SMALL[1:], "depth=12", "projector_dim=16", "max_steps=2"]
    done = repa_train(*words)
    assert done.exit_code == 0, done.stderr
    path = Path(json.loads(done.stdout)["export"])
    assert path == tmp_path / "run" / "checkpoints" / "official-0000002.pt"
    content = torch.load(path, weights_only=False)
    saved = state.load_checkpoint(path.with_name("0000002.pt"))
    assert list(content) == ["model", "ema", "opt", "args", "steps"]
    assert list(content["ema"]) == list(saved["ema"])
    assert set(content["ema"]) == set(golden)  # names, the widths being ours
    assert equal_trees(content["model"], saved["model"])
    assert content["steps"] == 2
    args = content["args"]
    assert isinstance(args, argparse.Namespace)
    expected = {"model": "SiT-digits/2", "enc_type": "digits-vit", "encoder_depth": 1, "proj_coeff": 1.0, "seed": 0,
                "path_type": "linear", "prediction": "v", "cfg_prob": 0.1, "num_classes": 10, "max_train_steps": 2,
                "batch_size": 8, "num_heads": 2, "legacy": False, "fused_attn": True, "qk_norm": False}  # fmt: skip
    assert {key: getattr(args, key) for key in expected} == expected
    opened = checkpoints.load(path)
    assert (opened.layout, opened.step, opened.option("encoder_depth")) == ("trainer", 2, 1)
    assert "REPA" in opened.systems
    assert equal_trees(dict(opened.network.state_dict()), dict(saved["ema"]))


def test_the_exported_optimiser_is_one_of_all_parameters(data: str, tmp_path: Path) -> None:
    from repa_eval.train.official_export import official_content

    last = run(recipe_of(data), tmp_path / "run")
    saved, content = state.load_checkpoint(last), official_content(last)
    network = checkpoints.load(last, weights="online").network.requires_grad_(True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1.0)  # as the official trainers make it
    optimizer.load_state_dict(content["opt"])
    names = [name for name, _ in network.named_parameters()]
    trained = [name for name in names if name != "pos_embed"]
    for number, entry in saved["opt"]["state"].items():
        parameter = dict(network.named_parameters())[trained[number]]
        assert torch.equal(optimizer.state[parameter]["exp_avg"], entry["exp_avg"])
    assert len(optimizer.state) == len(trained)


def test_what_no_official_script_reads_is_not_exported(data: str, tmp_path: Path) -> None:
    from repa_eval.train.official_export import export_official

    for method in ("gmem", "urepa"):
        last = run(recipe_of(data, method, max_steps=1), tmp_path / method)
        with pytest.raises(UserError, match=f"--export official: no official script reads .* of method {method}"):
            export_official(last)


# --- keep


def test_which_checkpoints_stay() -> None:
    steps = [5, 10, 15, 20, 25]
    assert kept_steps("all", steps) == set(steps)
    assert kept_steps("1", steps) == {25}
    assert kept_steps("2", steps) == {20, 25}
    assert kept_steps("9", steps) == set(steps)
    assert kept_steps("every:10", steps) == {10, 20, 25}
    assert kept_steps("every:1", []) == set()
    for wrong in ("0", "-1", "some", "every:0", "every", "every:x", "1:2"):
        with pytest.raises(UserError, match=f"keep: '{wrong}' is not allowed; write all, a number N, or every:M"):
            kept_steps(wrong, steps)


def test_other_checkpoints_of_a_run_are_removed(data: str, tmp_path: Path) -> None:
    words = ["--recipe", "digits-repa", "--out", str(tmp_path / "run"), "--quiet", f"data={data}", *SMALL]
    words += ["max_steps=6", "checkpoint_every=1"]
    done = repa_train(*words, "--keep", "every:4")
    assert done.exit_code == 0, done.stderr
    assert [path.stem for path in state.checkpoints_of(tmp_path / "run")] == ["0000004", "0000006"]
    again = [word.replace("max_steps=6", "max_steps=7") for word in words]  # what stays may change on the way
    done = repa_train(
        "--recipe", "digits-repa", "--out", str(tmp_path / "run"), "--quiet", "--resume", "keep=1", *again
    )
    assert done.exit_code == 0, done.stderr
    assert [path.stem for path in state.checkpoints_of(tmp_path / "run")] == ["0000007"]
    wrong = repa_train("--recipe", "digits-repa", "--keep", "none", "--dry-run")
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert "keep: 'none' is not allowed" in wrong.stderr


# --- progress and benchmark


def test_a_plain_line_at_every_point_of_the_curves(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 2))  # each look at the clock is two seconds later
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    shown = progress.Progress(recipe_of(data, max_steps=100), 10, shown=True)
    lines: list[str] = []
    monkeypatch.setattr(progress.click, "echo", lambda line, err: lines.append(line))
    shown.point(20, {"denoising_loss": 1.25, "loss": 1.5, "grad_norm": 3.0})
    shown.pause()
    shown.go_on()
    shown.point(40, {"loss": 1.0})
    assert lines == [
        "step 20/100  denoising_loss 1.250  loss 1.500  40 images/s  0:00:16 left",  # 10 steps of 8 in 2 s
        "step 40/100  loss 1.000  40 images/s  0:00:12 left",  # 20 steps in 6 s, of which 2 were a pause
    ]
    monkeypatch.undo()
    words = [word for word in SMALL if not word.startswith("encoder_depth")]
    words += [f"data={data}", "max_steps=4", "log_every=2"]
    done = repa_train("--recipe", "digits-vanilla", "--out", str(tmp_path / "run"), *words)
    assert done.exit_code == 0, done.stderr
    assert [line.split("  ")[0] for line in done.stderr.splitlines()] == ["step 2/4", "step 4/4"]


def test_a_benchmark_measures_and_writes_nothing(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--recipe", "digits-repa", "--benchmark", "2", f"data={data}", *SMALL]
    measured = json.loads(repa_train(*words, "--json").stdout)
    parts = measured["milliseconds"]
    assert list(parts) == ["data", "teacher", "forward", "backward", "optimiser", "average", "step"]
    assert min(parts.values()) > 0
    assert parts["step"] == pytest.approx(sum(parts.values()) - parts["step"])
    assert measured["images_per_second"] == pytest.approx(8 / (parts["step"] / 1000))
    assert (measured["steps"], measured["batch_size"], measured["device"]) == (2, 8, "cpu")
    assert measured["memory_mb"] > 50
    shown = repa_train(*words).stdout.splitlines()
    assert shown[0] == "digits-repa, SiT-digits/2, batch 8, mixed precision no, cpu, 2 steps"
    assert [line.split()[0] for line in shown[3:]] == ["part", *parts]
    assert list(tmp_path.iterdir()) == []
