"""The trainer: exact order and draws, schedules, checkpoints, run folder, a user's method, several processes."""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from torch import nn
from torch.nn import functional as F

from helpers import (
    MY_LOSS,
    batches_of,
    digits,
    equal_trees,
    files_of,
    finish,
    launch,
    run,
    save_small_data,
    steps_of,
    tiny,
)
from repa_eval import checkpoints, results
from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.errors import Failure, UserError
from repa_eval.interfaces.method import METHODS, Batch
from repa_eval.results import Row, make_row
from repa_eval.runtime.run_lock import RunLock
from repa_eval.train import batches, loop, state
from repa_eval.train.cli import main
from repa_eval.train.evaluated import monitors_of
from repa_eval.train.methods.vanilla import Vanilla
from repa_eval.train.optim import Average, Optim
from repa_eval.train.recipe import Recipe


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """A run of REPA with measurements, six steps long."""
    recipe = tiny("repa", eval_every=2, num_samples=40, num_steps=2)
    out = tmp_path_factory.mktemp("finished") / "run"
    run(recipe, out, monitors=monitors_of(recipe, out), labels={"control": False})
    return recipe, out


def curve(out: Path, metric: str = "loss") -> list[float]:
    """The values of one training curve, in order of the steps."""
    rows = sorted((row for row in results.read(out / "log.jsonl") if row.metric == metric), key=lambda row: row.step)
    return [row.value for row in rows]


# --- order


class Share:
    """What share_of needs to know of an Accelerator."""

    def __init__(self, processes: int, index: int) -> None:
        self.num_processes, self.process_index = processes, index


def order(size: int, recipe: Recipe, *, start: int = 0, processes: int = 1) -> list[list[int]]:
    """The image indices of every step, shares of the processes joined."""
    shares = [batches.share_of(recipe.settings.batch_size, Share(processes, i), 1) for i in range(processes)]
    parts = zip(*(batches.Order(size, recipe, start, share) for share in shares), strict=True)
    return [list(itertools.chain(*step)) for step in parts]


def test_an_epoch_is_a_permutation() -> None:
    seen = list(itertools.chain(*order(20, tiny(max_steps=10))))  # 80 images: four epochs, cut across batches
    epochs = [seen[first : first + 20] for first in range(0, 80, 20)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_the_order_follows_from_the_seed() -> None:
    assert order(20, tiny()) == order(20, tiny())
    assert order(20, tiny()) != order(20, tiny(seed=1))


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_shares_of_processes_make_the_same_global_batch(processes: int) -> None:
    assert order(20, tiny(), processes=processes) == order(20, tiny())


@pytest.mark.parametrize("start", [0, 1, 3, 5, 6])
def test_starting_later_equals_skipping(start: int) -> None:
    assert order(20, tiny(), start=start) == order(20, tiny())[start:]


def test_batches_larger_than_the_data() -> None:
    [first, second] = order(5, tiny(max_steps=2))
    assert sorted(first[:5]) == list(range(5))
    assert sorted(first[5:] + second[:2]) == list(range(5))


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="batch_size 8 does not divide into 3 processes x 1 parts"):
        batches.share_of(8, Share(3, 0), 1)
    with pytest.raises(UserError, match="batch_size 8 does not divide into 2 processes x 3 parts"):
        batches.share_of(8, Share(2, 0), 3)


def test_readers_give_the_same_batches() -> None:
    loaded = [list(batches.loader(digits("val"), tiny(num_workers=workers), 1, range(8))) for workers in (0, 2)]
    assert len(loaded[0]) == 5
    assert equal_trees(*[[[batch.images, batch.labels] for batch in run] for run in loaded])


def test_a_part_is_what_its_positions_say() -> None:
    recipe, _, images, _ = steps_of(tiny(gradient_accumulation=2))
    parts = batches_of(recipe, images, [])
    [whole] = batches_of(tiny(), images, [])
    assert [len(part.x) for part in parts] == [4, 4]
    for name in ("x", "y", "images"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name)), name
    assert whole.x.min() >= -1
    assert whole.x.max() <= 1
    assert whole.images.dtype == torch.uint8


# --- the same numbers


def test_two_runs_give_the_same_numbers(finished: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, first = finished
    run(recipe, tmp_path / "run")
    for metric in ("loss", "denoising_loss", "proj_loss", "grad_norm", "learning_rate"):
        assert curve(first, metric) == curve(tmp_path / "run", metric), metric
    assert len(curve(first)) == 6
    last = "checkpoints/0000006.pt"
    assert (first / last).read_bytes() == (tmp_path / "run" / last).read_bytes()


def test_another_seed_gives_other_numbers(finished: tuple[Recipe, Path], tmp_path: Path) -> None:
    run(tiny("repa", seed=1), tmp_path / "run")
    assert curve(finished[1]) != curve(tmp_path / "run")


def test_one_process_trains_in_one_precision_after_another(tmp_path: Path) -> None:
    for precision in ("bf16", "no", "bf16"):
        run(tiny("vanilla", mixed_precision=precision), tmp_path / f"run-{len(list(tmp_path.iterdir()))}")
    narrow, full, again = (curve(tmp_path / f"run-{index}") for index in range(3))
    assert narrow == again != full


def test_arms_of_one_seed_start_alike() -> None:
    # paired: the same weights, images, noise and times, whatever the method adds
    (_, plain, images, _), (_, aligned, _, teachers) = steps_of(tiny("vanilla")), steps_of(tiny("repa"))
    theirs = aligned.model.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in plain.model.state_dict().items())
    [one], [other] = batches_of(tiny("vanilla"), images, []), batches_of(tiny("repa"), images, teachers)
    assert equal_trees(one.draws, other.draws)
    assert torch.equal(one.x, other.x)


@pytest.mark.parametrize("method", ["vanilla", "repa"])
def test_accumulating_gradients_changes_nothing_but_rounding(method: str, tmp_path: Path) -> None:
    # warm: a fresh SiT outputs 0, its losses would be equal for any gradient in the first steps
    runs = {parts: tiny(method, gradient_accumulation=parts, max_steps=8, warmup_steps=0) for parts in (1, 2, 4)}
    for parts, recipe in runs.items():
        run(recipe, tmp_path / str(parts))
    for metric in ("loss", "grad_norm"):
        once = curve(tmp_path / "1", metric)
        assert once[0] != once[-1]
        for parts in ("2", "4"):
            assert curve(tmp_path / parts, metric) == pytest.approx(once, rel=3e-6, abs=1e-6)


def test_the_alignment_is_learnt(tmp_path: Path) -> None:
    recipe = tiny("repa", max_steps=40, learning_rate=3e-3, batch_size=32)
    model = checkpoints.load(run(recipe, tmp_path / "run"), weights="online").model
    resolved, _, images, teachers = steps_of(recipe)
    [batch] = batches_of(resolved, images, teachers, step=39)
    t = batch.draws["time"]
    _, hidden = model(Interpolant().mix(batch.x, batch.draws["noise"], t), t, batch.y, taps=(1,))
    cosines = F.cosine_similarity(model.projectors[0](hidden[1]), batch.teachers[0], dim=-1)
    assert float(cosines.mean()) > 0.25
    aligned = curve(tmp_path / "run", "proj_loss")
    assert aligned[0] > -0.1
    assert aligned[-1] < -0.25  # minus the mean cosine
    denoised = curve(tmp_path / "run", "denoising_loss")
    assert sum(denoised[-5:]) < 0.8 * sum(denoised[:5])


def test_updates_are_clipped(tmp_path: Path) -> None:
    recipe, objective, images, _ = steps_of(tiny(max_grad_norm=1e-3, warmup_steps=0))
    from accelerate import Accelerator

    seen = []
    optimizer = recipe.settings.optim.build(objective.parameters())
    optimizer.register_step_pre_hook(
        lambda chosen, *_: seen.append(
            math.sqrt(sum(float(p.grad.square().sum()) for p in chosen.param_groups[0]["params"] if p.grad is not None))
        )
    )
    parts = batches_of(recipe, images, [])
    ema = state.average_of(objective.model)
    _, norm = loop.update(Accelerator(cpu=True), objective, parts, 0, optimizer, ema, recipe.settings)
    assert float(norm) > 1e-2  # the reported one is that before clipping
    assert seen == [pytest.approx(1e-3, rel=1e-3)]


# --- schedules


def test_learning_rates() -> None:
    constant = Optim(learning_rate=2.0, warmup_steps=4)
    assert [constant.rate(step, 100) for step in (0, 1, 3, 4, 50, 99)] == [0.5, 1.0, 2.0, 2.0, 2.0, 2.0]
    cosine = Optim(learning_rate=2.0, warmup_steps=4, schedule="cosine")
    assert [cosine.rate(step, 104) for step in (0, 3, 4, 29, 54, 79)] == pytest.approx(
        [0.5, 2.0, 2.0, 1 + math.sqrt(0.5), 1.0, 1 - math.sqrt(0.5)]
    )
    assert 0 < cosine.rate(103, 104) < 1e-3
    assert Optim(learning_rate=2.0).rate(0, 10) == 2.0


def test_the_rate_of_the_schedule_is_used(tmp_path: Path) -> None:
    run(tiny(learning_rate=1e-3, warmup_steps=4), tmp_path / "run")
    assert curve(tmp_path / "run", "learning_rate") == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3, 1e-3])


def test_decays_of_the_average() -> None:
    assert [Average(ema_decay=0.9, ema_schedule="ramp").decay(step, 99) for step in (0, 1, 8, 79, 80, 1000)] == [
        pytest.approx(value) for value in (0.1, 2 / 11, 0.5, 80 / 89, 0.9, 0.9)
    ]
    assert [Average(ema_decay=0.9, ema_schedule="cosine").decay(step, 100) for step in (0, 50, 100)] == [
        pytest.approx(value) for value in (0.9, 0.95, 1.0)
    ]
    assert [Average(ema_decay=0.9).decay(step, 100) for step in (0, 50, 100)] == [0.9] * 3


def test_the_average_is_taken_of_parameters_and_buffers_are_copied() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = state.average_of(model)
    before = {key: value.clone() for key, value in ema.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    model[1].running_mean.fill_(7.0)
    model[1].num_batches_tracked.fill_(3)
    state.update_average(ema, model, 0.75)
    for key, parameter in ema.named_parameters():
        torch.testing.assert_close(parameter, before[key] + 0.25)
    assert ema[1].running_mean.tolist() == [7.0, 7.0]
    assert int(ema[1].num_batches_tracked) == 3


def test_the_average_of_a_run_follows_its_schedule(tmp_path: Path) -> None:
    recipe = tiny(max_steps=1, warmup_steps=0, learning_rate=1e-2, ema_decay=0.99)  # ramp: the first decay is 0.1
    _, fresh, _, _ = steps_of(recipe)
    saved = state.load_checkpoint(run(recipe, tmp_path / "run"))
    for key, parameter in fresh.model.named_parameters():
        torch.testing.assert_close(saved["ema"][key], 0.1 * parameter.detach() + 0.9 * saved["model"][key])


# --- checkpoints and run folder


def test_a_checkpoint_is_tensors_and_plain_values(finished: tuple[Recipe, Path]) -> None:
    recipe, out = finished
    file = out / "checkpoints" / "0000006.pt"
    saved = torch.load(file, weights_only=True)
    assert list(saved) == ["model", "ema", "method", "opt", "step", "rng", "recipe"]
    assert saved["step"] == 6
    assert saved["recipe"] == yaml.safe_load((out / "recipe.yaml").read_text())
    assert saved["rng"]["seed"] == recipe.settings.seed
    leaves = [saved]
    while leaves:
        leaf = leaves.pop()
        if isinstance(leaf, dict):
            leaves += leaf.values()
        elif isinstance(leaf, list):
            leaves += leaf
        else:
            assert isinstance(leaf, (torch.Tensor, int, float, str, bool, type(None))), type(leaf)


def test_the_same_state_gives_the_same_bytes(finished: tuple[Recipe, Path], tmp_path: Path) -> None:
    file = finished[1] / "checkpoints" / "0000006.pt"
    for name in ("a.pt", "b.pt"):
        state.save_checkpoint(tmp_path / name, torch.load(file, weights_only=True))
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes() == file.read_bytes()
    # pickle records which equal strings and containers are one object: that must not show
    word, shape = "digits", [1, 2]
    for name, second in {"c.pt": (word, shape), "d.pt": ("".join(word), [*shape])}.items():
        content = {**dict.fromkeys(state.KEYS, 0), "recipe": {"a": (word, shape), "b": second}}
        state.save_checkpoint(tmp_path / name, content)
    assert (tmp_path / "c.pt").read_bytes() == (tmp_path / "d.pt").read_bytes()


def test_a_checkpoint_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = dict.fromkeys(state.KEYS, 0)
    state.save_checkpoint(tmp_path / "a.pt", content)
    before = (tmp_path / "a.pt").read_bytes()
    seen = []

    def watch(self: Path, target: Path) -> None:
        seen.append((self.parent, Path(target)))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", watch)
    with pytest.raises(OSError, match="No space"):
        state.save_checkpoint(tmp_path / "a.pt", {**content, "step": 1})
    assert seen == [(tmp_path, tmp_path / "a.pt")]  # renamed within the folder, hence at once
    assert (tmp_path / "a.pt").read_bytes() == before
    assert list(tmp_path.iterdir()) == [tmp_path / "a.pt"]


def test_the_run_folder(finished: tuple[Recipe, Path]) -> None:
    _, out = finished
    pictures = {f"media/samples-{step:07d}.png" for step in (2, 4, 6)}
    tables = {"recipe.yaml", "run.json", "results.jsonl", "log.jsonl", "protocols.json"}
    assert set(files_of(out)) == {*tables, *pictures, "checkpoints/0000003.pt", "checkpoints/0000006.pt"}
    record = json.loads((out / "run.json").read_text())
    systems = list(METHODS.get("repa").systems)
    assert systems[0] == "REPA"
    expected = {"run": "run", "method": "repa", "systems": systems, "seed": 0, "status": "done"}
    assert record | expected | {"step": 6, "aligned_layer": 1, "teacher": "digits-vit", "control": False} == record
    assert yaml.safe_load((out / "recipe.yaml").read_text())["architecture"]["z_dims"] == [96]


def test_the_tables_of_a_run(finished: tuple[Recipe, Path]) -> None:
    _, out = finished
    rows, curves = results.read(out), results.read(out / "log.jsonl")
    records = results.read_protocols(out)
    assert {row.metric for row in rows} >= {
        "fd_digits",
        "is_digits",
        "precision_digits",
        "recall_digits",
        "fd_pixel_pca",
    }
    assert {row.step for row in rows} == {2, 4, 6}
    assert {row.metric for row in curves} == {
        "loss", "denoising_loss", "proj_loss", "grad_norm", "learning_rate", "train_seconds",
    }  # fmt: skip
    assert {(row.run, row.system, row.method, row.train_seed) for row in (*rows, *curves)} == {
        ("run", "REPA", "repa", 0)
    }
    for row in rows:
        assert row.weights == "ema"
        assert records[row.protocol]["num_samples"] == row.n == 40
        assert results.protocol_hash(records[row.protocol]) == row.protocol
    seconds = curve(out, "train_seconds")
    assert seconds == sorted(seconds)
    assert curve(out) == pytest.approx(
        [a + b for a, b in zip(curve(out, "denoising_loss"), curve(out, "proj_loss"), strict=True)]
    )


def test_curves_are_thinned(tmp_path: Path) -> None:
    run(tiny(log_every=4), tmp_path / "run")
    assert [row.step for row in results.read(tmp_path / "run" / "log.jsonl") if row.metric == "loss"] == [4, 6]


def test_monitors_see_the_averaged_model(tmp_path: Path) -> None:
    seen: list[int] = []

    def monitor(step: int, model: nn.Module) -> Iterator[Row]:
        seen.append(step)
        assert not model.training
        yield make_row(metric="norm", value=float(model.blocks[0].mlp.fc1.weight.norm()), step=step)

    last = run(tiny(eval_every=4), tmp_path / "run", monitors=[monitor])
    assert seen == [4, 6]
    averaged = state.load_checkpoint(last)["ema"]["blocks.0.mlp.fc1.weight"]
    assert results.read(tmp_path / "run")[-1].value == float(averaged.norm())


def test_measuring_changes_nothing(finished: tuple[Recipe, Path], tmp_path: Path) -> None:
    def meddle(step: int, model: nn.Module) -> Iterator[Row]:
        torch.rand(step)  # a monitor that draws from torch's own generator
        return iter(())

    plain = run(tiny("repa", eval_every=2), tmp_path / "a", monitors=[meddle])
    other = run(tiny("repa", eval_every=0), tmp_path / "b")
    a, b = (state.load_checkpoint(path) for path in (plain, other))
    assert equal_trees([a[key] for key in state.KEYS[:5]], [b[key] for key in state.KEYS[:5]])


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"step \d: a loss is not finite"):
        run(tiny(learning_rate=1e30, max_grad_norm=1e30, warmup_steps=0, checkpoint_every=1), tmp_path / "run")
    for file in (tmp_path / "run" / "checkpoints").glob("*.pt"):
        assert all(bool(tensor.isfinite().all()) for tensor in state.load_checkpoint(file)["model"].values()), file


# --- a user's own method


def write_my_loss(folder: Path) -> Path:
    (folder / "my_loss.py").write_text(MY_LOSS)
    return folder / "my_loss.py"


def test_a_method_of_the_users_own_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_my_loss(tmp_path)
    monkeypatch.chdir(tmp_path)
    words = ["depth=2", "hidden_size=32", "num_heads=2", "max_steps=8", "batch_size=8", "split=val", "eval_every=0"]
    words += ["log_every=1", "checkpoint_every=4", "warmup_steps=0", "norm_coeff=0.02"]
    done = CliRunner().invoke(main, ["--method", "./my_loss.py", "--out", "mine", "--device", "cpu", "--quiet", *words])
    assert done.exit_code == 0, done.stderr
    losses = curve(tmp_path / "mine", "huber_loss")
    assert losses[-1] < losses[0]
    assert curve(tmp_path / "mine", "norm_loss") != [0.0] * 8
    opened = checkpoints.load(tmp_path / "mine" / "checkpoints" / "0000008.pt")
    assert opened.recipe["method"] == "my-huber"
    assert opened.option("norm_coeff") == 0.02
    assert opened.model_name == "SiT-digits/2"
    saved = state.load_checkpoint(opened.path)
    assert sorted(saved["method"]) == ["scale.bias", "scale.weight"]
    assert done.stdout.strip().splitlines()[-1].startswith("repa-eval ")


class Grouped(Vanilla):
    """The first block learns at a rate of its own; after each step, its bias is set to the step's number."""

    def parameter_groups(self, model: nn.Module, modules: nn.ModuleDict) -> list[dict[str, Any]]:
        first = list(model.blocks[0].parameters())
        rest = [p for p in self.trainable(model, modules) if all(p is not one for one in first)]
        return [{"params": rest}, {"params": first, "lr": 5e-3, "weight_decay": 0.1}]

    def after_step(self, model: Any, modules: nn.ModuleDict, batch: Batch, step: int) -> None:
        assert len(batch.y) == 8
        model.blocks[0].mlp.fc1.bias.fill_(step)


def test_groups_have_rates_of_their_own_and_a_hook_runs_after_each_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS._objects, "vanilla", Grouped)
    recipe = tiny(learning_rate=1e-3, warmup_steps=4)
    for out in ("whole", "again"):
        run(recipe, tmp_path / out)
    saved = state.load_checkpoint(tmp_path / "whole" / "checkpoints" / "0000003.pt")
    rest, first = saved["opt"]["param_groups"]
    assert (rest["lr"], rest["weight_decay"]) == (pytest.approx(0.75e-3), 0.0)
    assert (first["lr"], first["weight_decay"]) == (pytest.approx(0.75 * 5e-3), 0.1)  # the schedule multiplies it
    assert set(saved["model"]["blocks.0.mlp.fc1.bias"].tolist()) == {2.0}
    assert set(saved["ema"]["blocks.0.mlp.fc1.bias"].tolist()) != {2.0}  # the average was updated before
    last = tmp_path / "again" / "checkpoints" / "0000006.pt"
    last.unlink()
    run(recipe, tmp_path / "again", resume=True)
    assert last.read_bytes() == (tmp_path / "whole" / "checkpoints" / "0000006.pt").read_bytes()


def test_settings_that_a_group_cannot_have_are_refused() -> None:
    weight = nn.Parameter(torch.zeros(2))
    with pytest.raises(UserError, match="unknown key of a parameter group 'learning_rate'"):
        Optim().build([{"params": [weight], "learning_rate": 1.0}])
    with pytest.raises(UserError, match="optim: some parameters appear in more than one parameter group"):
        Optim().build([{"params": [weight]}, {"params": [weight]}])


def test_a_file_that_is_no_method(tmp_path: Path) -> None:
    (tmp_path / "none.py").write_text("x = 1\n")
    (tmp_path / "taken.py").write_text(MY_LOSS.replace("my-huber", "repa"))
    for words, text in {
        "none.py": "must register exactly one method; it registers nothing",
        "taken.py": "method 'repa' is registered twice",
        "missing.py": "does not exist",
    }.items():
        done = CliRunner().invoke(main, ["--method", str(tmp_path / words), "--dry-run"])
        assert done.exit_code == 2
        assert text in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert done.stdout == ""


# --- more than one process

# What `repa-train` runs. An interpreter taken down while gloo's thread needs it hangs or aborts, once in some hundred
COMMAND = """
import atexit

from repa_eval.train.cli import main
from repa_eval.train.methods.vanilla import Vanilla

atexit.register(print, "the interpreter is taken down")
main()
"""


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("repa", {}),
        ("haste", {"early_stop_point": 3}),  # after its stop there are parameters without a gradient
        ("urepa", {"manifold_pairs": "batch"}),  # a term of all pairs of the batch: both processes gather
    ],
)
def test_two_processes_give_the_curve_of_one(tmp_path: Path, name: str, more: dict[str, object]) -> None:
    (tmp_path / "command.py").write_text(COMMAND)
    recipe = tiny(name, data=save_small_data(tmp_path / "small.npz"), split="train", **more)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.to_dict()))
    # `accelerate launch --cpu --num_processes 2` starts ONE process unless there is an mpirun
    torchrun = ["--standalone", "--nproc_per_node", "2", "--redirects", "3", "--log-dir", "logs"]
    words = ["--recipe", "recipe.yaml", "--device", "cpu", "--quiet", "--out", "two"]
    process = launch("torch.distributed.run", *torchrun, "command.py", *words, cwd=tmp_path)
    code, _, err = finish(process)
    said = {path.parent.name: path.read_text() for path in (tmp_path / "logs").rglob("stdout.log")}
    assert code == 0, [err, *(path.read_text() for path in (tmp_path / "logs").rglob("stderr.log"))]
    command = f"repa-eval align --ckpt two/checkpoints/0000006.pt --layer 1 --data {recipe.settings.data}\n"
    assert said == {"0": command, "1": ""}
    run(recipe, tmp_path / "one")
    for metric in ("loss", "denoising_loss", "proj_loss", "grad_norm"):
        expected = pytest.approx(curve(tmp_path / "one", metric), rel=1e-5, abs=1e-6)
        assert curve(tmp_path / "two", metric) == expected, metric
    assert len(curve(tmp_path / "two")) == 6
    assert set(files_of(tmp_path / "two")) == set(files_of(tmp_path / "one"))
    a, b = (state.load_checkpoint(tmp_path / name / "checkpoints" / "0000006.pt") for name in ("one", "two"))
    for key, value in a["ema"].items():
        # a key's bias moves no softmax: its gradient is rounding, which Adam scales up to full steps
        close = 1e-3 if key.endswith("qkv.bias") else 1e-5
        torch.testing.assert_close(b["ema"][key], value, rtol=1e-4, atol=close)


def test_a_second_trainer_is_kept_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    held = RunLock(tmp_path / "run")
    with pytest.raises(Failure, match="another repa-train is writing this run"):
        run(tiny(), tmp_path / "run")
    held.release()
    run(tiny(max_steps=1), tmp_path / "run")


def test_images_must_be_square(tmp_path: Path) -> None:
    import numpy as np

    np.savez(tmp_path / "flat.npz", arr_0=np.zeros((8, 8, 6, 1), np.uint8))
    with pytest.raises(UserError, match="images of 8x6; the models take square ones"):
        run(tiny(data=f"folder:{tmp_path / 'flat.npz'}"), tmp_path / "run")
