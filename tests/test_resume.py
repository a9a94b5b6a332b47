"""Stopping and continuing: after a kill at any moment, or Ctrl-C, a resumed run equals one that never stopped."""

from __future__ import annotations

import gc
import json
import os
import random
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from helpers import MY_LOSS, files_of, finish, launch, run, save_small_data, tiny
from repa_eval import results
from repa_eval.errors import Failure, UserError
from repa_eval.interfaces.method import METHODS
from repa_eval.results import Row, make_row
from repa_eval.runtime.files import write_atomic
from repa_eval.train import state
from repa_eval.train.cli import main
from repa_eval.train.methods.vanilla import Vanilla
from repa_eval.train.recipe import Recipe, resolve
from repa_eval.train.writer import Writer

TRAIN = "repa_eval.train.cli"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asks git for the commit: it takes longer than the tiny runs here."""
    monkeypatch.setattr("repa_eval.train.loop.environment", dict)


class Killed(BaseException):
    """Stands for SIGKILL inside one process."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_small_data(tmp_path_factory.mktemp("data") / "small.npz")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: str) -> Path:
    """A recipe, and the run of it that never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    measured = {"eval_every": 50, "num_samples": 16, "num_steps": 2}
    recipe = tiny("repa", data=data, split="train", max_steps=150, checkpoint_every=10, **measured)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.to_dict()))
    assert here("--recipe", folder / "recipe.yaml", "--out", folder / "run").exit_code == 0
    return folder


def start(recipe: Path, out: Path, *more: str, **options: Any) -> Any:
    """`repa-train` in a process of its own."""
    words = ["--recipe", recipe, "--out", out, "--device", "cpu", "--quiet", *more]
    return launch(TRAIN, *words, cwd=recipe.parent, **options)


def here(*words: str | Path) -> Result:
    """`repa-train` in this process."""
    return CliRunner().invoke(main, [*map(str, words), "--device", "cpu", "--quiet"])


def wait_for(process: Any, log: Path, size: int) -> None:
    """Return as soon as the curves have grown to `size` bytes."""
    limit = time.monotonic() + 180
    while not (log.is_file() and log.stat().st_size >= size):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < limit
        time.sleep(0.001)


def rows_of(table: bytes) -> list[dict[str, Any]]:
    """The rows of a table; seconds are the one thing that a clock decides."""
    rows = [json.loads(line) for line in table.splitlines()]
    return [{**row, "value": None} if row["metric"] == "train_seconds" else row for row in rows]


def record_of(content: bytes) -> dict[str, Any]:
    """run.json without the environment: somebody may commit between two runs."""
    return {key: value for key, value in json.loads(content).items() if key != "environment"}


def assert_same_run(a: Path, b: Path) -> None:
    """The same files with the same bytes, but for seconds and the commit; no row twice."""
    mine, theirs = files_of(a), files_of(b)
    assert sorted(mine) == sorted(theirs)
    for name, content in mine.items():
        if name == "log.jsonl":
            assert rows_of(content) == rows_of(theirs[name])
        elif name == "run.json":
            assert record_of(content) == record_of(theirs[name])
        else:
            assert content == theirs[name], name
    for name in ("log.jsonl", "results.jsonl"):
        keys = [json.dumps({**row, "value": None, "note": None}) for row in rows_of(mine[name])]
        assert len(keys) == len(set(keys)), name


def test_killed_three_times(whole: Path, tmp_path: Path) -> None:
    chance = random.Random(1)
    out, log = tmp_path / "run", tmp_path / "run" / "log.jsonl"
    length = (whole / "run" / "log.jsonl").stat().st_size
    for kill in range(3):
        process = start(whole / "recipe.yaml", out, "--resume")
        wait_for(process, log, int(length * (kill + chance.uniform(0.05, 0.95)) / 4))
        time.sleep(chance.uniform(0, 0.02))
        os.kill(process.pid, signal.SIGKILL)
        code, _, _ = finish(process)
        assert code == -signal.SIGKILL, "it was too fast to be killed"
    assert json.loads((out / "run.json").read_text())["status"] == "running"
    done = here("--recipe", whole / "recipe.yaml", "--out", out, "--resume")
    assert done.exit_code == 0, done.stderr
    assert_same_run(out, whole / "run")


def test_ctrl_c_saves_and_says_how_to_continue(whole: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "run" / "log.jsonl"
    process = start(whole / "recipe.yaml", out)
    wait_for(process, log, (whole / "run" / "log.jsonl").stat().st_size // 3)
    os.kill(process.pid, signal.SIGINT)
    code, stdout, stderr = finish(process)
    assert code == 130
    assert stdout == ""
    [line] = stderr.splitlines()
    assert line.endswith(f"continue with: repa-train --recipe {out}/recipe.yaml --out {out} --resume")
    stopped = json.loads((out / "run.json").read_text())
    assert stopped["status"] == "interrupted"
    assert state.latest_checkpoint(out) == state.checkpoint_path(out, stopped["step"])
    words = line.partition("repa-train ")[2].split()
    done = here(*words)
    assert done.exit_code == 0, done.stderr
    if stopped["step"] % 10:  # where it was stopped lies one checkpoint more
        state.checkpoint_path(out, stopped["step"]).unlink()
    assert_same_run(out, whole / "run")


@pytest.mark.parametrize("from_file", [False, True])
def test_the_line_after_ctrl_c_can_be_typed(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, from_file: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my loss.py").write_text(MY_LOSS)
    words = ["--out", "my run", "depth=2", "hidden_size=32", "num_heads=2", "max_steps=6", "batch_size=8"]
    words += [f"data={data}", "split=train", "checkpoint_every=50", "eval_every=2"]
    words += ["--method", "./my loss.py"] if from_file else ["--recipe", "digits-vanilla"]

    def press(step: int, model: Any) -> list[Row]:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return []

    monkeypatch.setattr("repa_eval.train.evaluated.monitors_of", lambda *_: [press])
    stopped = here(*words)
    assert (stopped.exit_code, stopped.stdout) == (130, "")
    _, command = stopped.stderr.split("continue with: repa-train ")
    assert ("--method" in command) == from_file
    monkeypatch.setattr("repa_eval.train.evaluated.monitors_of", lambda *_: [])
    done = here(*shlex.split(command))
    assert done.exit_code == 0, done.stderr
    assert sorted(path.name for path in Path("my run/checkpoints").iterdir()) == ["0000003.pt", "0000006.pt"]


# --- in this process, at every single moment that leaves a trace on the disk


def writes(monkeypatch: pytest.MonkeyPatch, die_at: int = 0) -> list[str]:
    """Note renames and appended rows; number `die_at` (1-based) no longer happens, nor does anything after it."""
    seen: list[str] = []
    replace, write = Path.replace, os.write

    def note(what: str) -> None:
        seen.append(what)
        if die_at and len(seen) >= die_at:
            raise Killed

    def dying_replace(self: Path, target: Path) -> Path:
        note(Path(target).name)
        return replace(self, target)

    def dying_write(handle: int, line: bytes) -> int:
        if len(seen) == die_at - 1 and die_at % 2:
            write(handle, line[: len(line) // 2])  # killed within the line
        note("row")
        return write(handle, line)

    monkeypatch.setattr(Path, "replace", dying_replace)
    monkeypatch.setattr(os, "write", dying_write)
    return seen


def attempt(recipe: Recipe, out: Path, **more: Any) -> bool:
    """Train; whether it ended without being killed."""

    def rows(step: int, model: Any) -> Iterator[Row]:
        norms = [(name, float(parameter.norm())) for name, parameter in model.named_parameters()]
        for name, norm in norms[:3]:
            yield make_row(metric=name, value=norm, step=step, protocol={"of": name, "step": step})

    def picture(step: int, model: Any) -> list[Row]:
        write_atomic(out / "media" / f"norm-{step:07d}.json", str(float(model.blocks[0].mlp.fc1.weight.norm())))
        return []

    try:
        run(recipe, out, monitors=[rows, picture, rows], **more)
    except Killed:
        gc.collect()  # closes the lock, as the end of a process does
        return False
    return True


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory, data: str) -> tuple[Recipe, Path]:
    recipe = tiny("repa", data=data, split="train", max_steps=5, checkpoint_every=2, log_every=3, eval_every=2)
    out = tmp_path_factory.mktemp("short") / "run"
    assert attempt(recipe, out)
    return recipe, out


def test_killed_at_every_write(short: tuple[Recipe, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, expected = short
    with monkeypatch.context() as patch:
        names = writes(patch)
        assert attempt(recipe, tmp_path / "all" / "run")
    assert {"run.json", "recipe.yaml", "0000002.pt", "protocols.json", "row", "norm-0000004.json"} <= set(names)
    # every file, and the first two and the last of rows that follow each other
    middle = {i for i in range(2, len(names) - 1) if set(names[i - 2 : i + 2]) == {"row"}}
    for number in [i + 1 for i in range(len(names)) if i not in middle]:
        out = tmp_path / str(number) / "run"
        with monkeypatch.context() as patch:
            writes(patch, number)
            assert not attempt(recipe, out)
        assert attempt(recipe, out, resume=True)
        try:
            assert_same_run(out, expected)
        except AssertionError as error:
            raise AssertionError(f"killed at write {number}, {names[number - 1]}: {error}") from error


def test_a_second_kill_while_resuming(
    short: tuple[Recipe, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, expected = short
    out = tmp_path / "run"
    for number in (20, 3, 5, 8, 4, 12):
        with monkeypatch.context() as patch:
            writes(patch, number)
            attempt(recipe, out, resume=True)
    assert attempt(recipe, out, resume=True)
    assert_same_run(out, expected)


def test_resuming_a_finished_run_changes_nothing(short: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, expected = short
    shutil.copytree(expected, tmp_path / "run")
    assert run(recipe, tmp_path / "run", resume=True) == state.checkpoint_path(tmp_path / "run", 5)
    assert files_of(tmp_path / "run") == files_of(expected)


def test_what_a_kill_left_of_a_checkpoint_is_removed(short: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, expected = short
    shutil.copytree(expected, tmp_path / "run")
    state.checkpoint_path(tmp_path / "run", 5).unlink()
    half = tmp_path / "run" / "checkpoints" / ".0000005.pt.1234.tmp"
    half.write_bytes(b"half")
    assert attempt(recipe, tmp_path / "run", resume=True)
    assert not half.exists()
    assert_same_run(tmp_path / "run", expected)


def test_resuming_nothing_starts(short: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, expected = short
    assert attempt(recipe, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", expected)


def test_a_run_can_be_made_longer(short: tuple[Recipe, Path], tmp_path: Path, data: str) -> None:
    recipe, expected = short
    shutil.copytree(expected, tmp_path / "run")
    tree = {**recipe.to_dict(), "max_steps": 8}
    run(resolve(tree), tmp_path / "run", resume=True)
    run(resolve(tree), tmp_path / "direct")
    last = "checkpoints/0000008.pt"
    assert (tmp_path / "run" / last).read_bytes() == (tmp_path / "direct" / last).read_bytes()


# --- what is refused


def test_a_folder_that_holds_a_run_is_not_overwritten(short: tuple[Recipe, Path]) -> None:
    recipe, out = short
    before = files_of(out)
    with pytest.raises(UserError, match=r"holds this run already \(done\); add --resume or choose another --out"):
        run(recipe, out)
    assert files_of(out) == before


def test_a_folder_that_holds_another_run_is_refused(short: tuple[Recipe, Path]) -> None:
    _, out = short
    for resume in (False, True):
        with pytest.raises(UserError, match=r"holds another run \(digits-repa, method repa\); choose another --out"):
            run(tiny("vanilla"), out, resume=resume)


@pytest.mark.parametrize("key", ["seed", "batch_size", "learning_rate", "proj_coeff", "depth"])
def test_a_run_with_other_settings_is_refused(short: tuple[Recipe, Path], tmp_path: Path, key: str) -> None:
    recipe, expected = short
    shutil.copytree(expected, tmp_path / "run")
    other = resolve(recipe.to_dict(), {key: 16 if key == "batch_size" else 3})
    before = files_of(tmp_path / "run")
    with pytest.raises(UserError, match=key):
        run(other, tmp_path / "run", resume=True)
    assert files_of(tmp_path / "run") == before


def test_an_option_that_an_older_run_does_not_record_is_at_its_default(
    short: tuple[Recipe, Path], tmp_path: Path
) -> None:
    recipe, expected = short
    shutil.copytree(expected, tmp_path / "run")
    last = state.checkpoint_path(tmp_path / "run", 5)
    last.unlink()
    before = state.checkpoint_path(tmp_path / "run", 4)
    saved = state.load_checkpoint(before)
    del saved["recipe"]["options"]["alignment"], saved["recipe"]["options"]["projector"]
    state.save_checkpoint(before, saved)
    with pytest.raises(UserError, match=r"other settings: options\.alignment\.align_until"):
        run(resolve(recipe.to_dict(), {"align_until": 3}), tmp_path / "run", resume=True)
    assert run(recipe, tmp_path / "run", resume=True) == last
    assert last.read_bytes() == state.checkpoint_path(expected, 5).read_bytes()


@pytest.mark.parametrize("key", ["seed", "learning_rate"])
def test_other_settings_are_refused_before_the_first_checkpoint(
    short: tuple[Recipe, Path], tmp_path: Path, key: str
) -> None:
    recipe, expected = short
    shutil.copytree(expected, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(UserError, match=key):
        run(resolve(recipe.to_dict(), {key: 3}), tmp_path / "run", resume=True)
    run(recipe, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "checkpoints" / "0000005.pt").is_file()


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(UserError, match="is not empty and holds no run; choose another --out"):
            run(tiny(), tmp_path, resume=resume)
    assert files_of(tmp_path) == {"notes.txt": b"mine"}


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "text": lambda _: b"not a checkpoint",
    "half": lambda data: data[:2000],
    "without its last byte": lambda data: data[:-1],
    "zeros": lambda data: bytes(len(data)),
    "a tail of zeros": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "one bit": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 64]) + data[len(data) // 2 + 1 :],
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_passed_over(
    short: tuple[Recipe, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    recipe, expected = short
    shutil.copytree(expected, tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "0000005.pt"
    last.write_bytes(DAMAGES[how](last.read_bytes()))
    assert attempt(recipe, tmp_path / "run", resume=True)
    [told] = caplog.messages
    assert "0000005.pt" in told
    assert told.endswith("the run goes on from step 4, 0000004.pt")
    assert "\n" not in told
    assert_same_run(tmp_path / "run", expected)


def test_checkpoints_of_which_none_is_good_are_named(short: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, expected = short
    shutil.copytree(expected, tmp_path / "run")
    for path in state.checkpoints_of(tmp_path / "run"):
        path.write_bytes(path.read_bytes()[:2000])
    before = files_of(tmp_path / "run")
    with pytest.raises(Failure, match=r"0000005\.pt .*; remove them to begin again at step 0") as caught:
        run(recipe, tmp_path / "run", resume=True)
    assert "\n" not in str(caught.value)
    assert files_of(tmp_path / "run") == before


def test_a_checkpoint_under_another_step_is_passed_over(
    short: tuple[Recipe, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe, expected = short
    shutil.copytree(expected, tmp_path / "run")
    shutil.copy(state.checkpoint_path(tmp_path / "run", 2), state.checkpoint_path(tmp_path / "run", 5))
    assert attempt(recipe, tmp_path / "run", resume=True)
    assert "0000005.pt is damaged: it was saved at step 2; the run goes on from step 4" in caplog.text
    assert_same_run(tmp_path / "run", expected)


@pytest.mark.parametrize(
    "change",
    [
        {"step": "5"}, {"step": None}, {"step": True}, {"opt": []}, {"opt": {}}, {"rng": 0}, {"recipe": None},
        {"model": {}}, {"model": torch.zeros(2)}, {"ema": {"a": 1}}, {"method": {"a": torch.zeros(2)}},
        {"opt": {"state": {}, "param_groups": 3}}, {"opt": {"state": {"a": 1}, "param_groups": []}},
        {"opt": {"state": {99: {}}, "param_groups": [{"params": [0]}]}},
    ],
    ids=str,
)  # fmt: skip
def test_odd_content_of_a_checkpoint_is_one_line_or_passed_over(
    short: tuple[Recipe, Path], tmp_path: Path, change: dict[str, Any]
) -> None:
    recipe, expected = short
    shutil.copytree(expected, tmp_path / "run")
    last = state.checkpoint_path(tmp_path / "run", 5)
    torch.save({**torch.load(last, weights_only=True), **change}, last)
    edit_record(tmp_path / "run", status="running")
    refusals: list[str] = []
    try:
        assert attempt(recipe, tmp_path / "run", resume=True)
    except UserError as error:
        refusals.append(str(error))
    if not refusals:
        assert_same_run(tmp_path / "run", expected)
    assert all("0000005.pt" in text and "\n" not in text for text in refusals)


def test_copies_among_the_checkpoints_are_left_alone(short: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, expected = short
    shutil.copytree(expected, tmp_path / "run")
    names = ["0000009-copy.pt", "9.pt", "0000008 (1).pt", "latest.pt", "\u0663.pt", "0000007.pt.part"]
    for name in names:
        (tmp_path / "run" / "checkpoints" / name).write_bytes(b"mine")
    (tmp_path / "run" / "checkpoints" / "0000006.pt").mkdir()
    assert [path.stem for path in state.checkpoints_of(tmp_path / "run")] == ["0000002", "0000004", "0000005"]
    assert run(recipe, tmp_path / "run", resume=True) == state.checkpoint_path(tmp_path / "run", 5)


def edit_record(folder: Path, **entries: Any) -> None:
    record = json.loads((folder / "run.json").read_text()) | entries
    (folder / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize("lacking", [0, -1])
def test_moments_that_are_missing_are_refused(short: tuple[Recipe, Path], tmp_path: Path, lacking: int) -> None:
    recipe, expected = short
    shutil.copytree(expected, tmp_path / "run")
    last = state.checkpoint_path(tmp_path / "run", 5)
    saved = torch.load(last, weights_only=True)
    del saved["opt"]["state"][sorted(saved["opt"]["state"])[lacking]]
    torch.save(saved, last)
    edit_record(tmp_path / "run", status="running")
    with pytest.raises(Failure, match=r"0000005\.pt is damaged: opt lacks moments of parameters that were trained"):
        run(recipe, tmp_path / "run", resume=True)


class Idle(Vanilla):
    """A method with a module that no loss depends on."""

    def modules(self, model: Any, teachers: Any) -> torch.nn.ModuleDict:
        return torch.nn.ModuleDict({"idle": torch.nn.Linear(2, 2)})


def test_a_parameter_that_was_never_updated_needs_no_moments(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS._objects, "vanilla", Idle)
    recipe = tiny(data=data, split="train", max_steps=4, checkpoint_every=2)
    run(recipe, tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    state.checkpoint_path(tmp_path / "b", 4).unlink()
    run(recipe, tmp_path / "b", resume=True)
    a, b = (state.checkpoint_path(tmp_path / name, 4).read_bytes() for name in "ab")
    assert a == b


@pytest.mark.parametrize("moment", [torch.zeros(1), torch.zeros(()), 3, None])
def test_moments_of_another_shape_are_refused(short: tuple[Recipe, Path], tmp_path: Path, moment: Any) -> None:
    recipe, expected = short
    shutil.copytree(expected, tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "0000005.pt"
    saved = torch.load(last, weights_only=True)
    saved["opt"]["state"][0]["exp_avg"] = moment
    torch.save(saved, last)
    record = json.loads((tmp_path / "run" / "run.json").read_text()) | {"status": "running"}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"0000005\.pt belongs to other settings"):
        run(resolve(recipe.to_dict(), {"max_steps": 6}), tmp_path / "run", resume=True)


LOST = [None, "", '{"run": ', "[]"]


@pytest.mark.parametrize("content", LOST)
@pytest.mark.parametrize("left", ["copy", "recipe", "checkpoints"])
def test_a_lost_record_is_written_anew(
    short: tuple[Recipe, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str | None, left: str
) -> None:
    recipe, expected = short
    shutil.copytree(expected, tmp_path / "run")
    lost = {"copy": [], "recipe": [".run.json.bak"], "checkpoints": [".run.json.bak", "recipe.yaml"]}[left]
    for name in ["run.json", *lost]:
        (tmp_path / "run" / name).unlink()
    if content is not None:
        (tmp_path / "run" / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"holds this run already \(.*\); add --resume or choose another --out"):
        run(recipe, tmp_path / "run")
    with pytest.raises(UserError, match=r"holds another run \(digits-repa, method repa\)"):
        run(tiny("vanilla"), tmp_path / "run", resume=True)
    state.checkpoint_path(tmp_path / "run", 5).unlink()
    assert attempt(recipe, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", expected)
    told = [f"{tmp_path / 'run'}: run.json is lost or damaged, and is written anew"]
    assert caplog.messages == ([] if left == "copy" else told)


def test_a_damaged_record_is_named(short: tuple[Recipe, Path], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"run": ')
    with pytest.raises(Failure, match=r"run\.json is damaged"):
        run(short[0], tmp_path / "run", resume=True)


@pytest.mark.parametrize("key", ["schedule", "ema_schedule"])
def test_a_schedule_that_depends_on_the_last_step_fixes_it(tmp_path: Path, data: str, key: str) -> None:
    recipe = tiny(data=data, split="train", max_steps=4, **{key: "cosine"})
    run(recipe, tmp_path / "run")
    before = files_of(tmp_path / "run")
    for steps in (3, 8):
        with pytest.raises(UserError, match=rf"max_steps 4 \(now {steps}\); its schedule depends on max_steps|already"):
            run(resolve(recipe.to_dict(), {"max_steps": steps}), tmp_path / "run", resume=True)
    assert files_of(tmp_path / "run") == before


def test_a_run_cannot_end_before_where_it_is(short: tuple[Recipe, Path]) -> None:
    recipe, expected = short
    with pytest.raises(UserError, match="is at step 5 already, beyond max_steps 3"):
        run(resolve(recipe.to_dict(), {"max_steps": 3}), expected, resume=True)


# --- another version of the package


def test_both_values_of_a_changed_setting_are_told(short: tuple[Recipe, Path]) -> None:
    recipe, expected = short
    other = resolve(recipe.to_dict(), {"seed": 3, "proj_coeff": 0.25})
    own = recipe.to_dict()["options"]["proj_coeff"]
    with pytest.raises(
        UserError, match=rf"other settings: options\.proj_coeff {own} \(now 0\.25\), seed 0 \(now 3\); choose"
    ):
        run(other, expected, resume=True)


@pytest.mark.parametrize("checkpoints", [True, False])
def test_an_option_of_another_version_is_told_and_no_end(
    short: tuple[Recipe, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, checkpoints: bool
) -> None:
    _, expected = short
    shutil.copytree(expected, tmp_path / "run")
    state.checkpoint_path(tmp_path / "run", 5).unlink()
    of_later = {"optim": {"nesterov": True}, "options": {"warp": [1, 2]}, "tuning": {"of": {"gates": 0.5}}}
    tree = yaml.safe_load((expected / "recipe.yaml").read_text())
    for key, entries in of_later.items():
        tree[key] = {**tree.get(key, {}), **entries}
    if checkpoints:
        before = state.checkpoint_path(tmp_path / "run", 4)
        saved = state.load_checkpoint(before)
        for key, entries in of_later.items():
            saved["recipe"].setdefault(key, {}).update(entries)
        state.save_checkpoint(before, saved)
    else:
        shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "recipe.yaml").write_text(yaml.safe_dump(tree))
    again = ["--recipe", tmp_path / "run" / "recipe.yaml", "--out", tmp_path / "run", "--resume"]
    done = here(*again, "eval_every=0")
    assert done.exit_code == 0, done.stderr
    assert "optim.nesterov True, options.warp [1, 2], tuning.of.gates 0.5" in caplog.text
    last = state.checkpoint_path(tmp_path / "run", 5)
    assert load_state(last) == load_state(state.checkpoint_path(expected, 5))
    typed = here("--recipe", "digits-vanilla", "--out", str(tmp_path / "new"), "optim.nesterov=true")
    assert typed.exit_code == 2  # what is typed is no recorded option
    assert "optim.nesterov" in typed.stderr


def load_state(path: Path) -> str:
    saved = state.load_checkpoint(path)
    return str([saved[key] for key in ("model", "ema", "opt")])


# --- signals


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)], ids=str
)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_saves_and_ends(data: str, tmp_path: Path, number: int, code: int, workers: int) -> None:
    """Sent to the whole group, as schedulers and terminals do: readers of images leave it to the trainer."""
    recipe = tiny(data=data, split="train", max_steps=100_000, checkpoint_every=100_000, num_workers=workers)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.to_dict()))
    out = tmp_path / "run"
    process = start(tmp_path / "recipe.yaml", out, start_new_session=True)
    wait_for(process, out / "log.jsonl", 5000)
    os.killpg(process.pid, number)
    found, stdout, stderr = finish(process)
    assert (found, stdout) == (code, "")
    assert stderr.count("\n") == 1
    assert "everything is saved; continue with: repa-train" in stderr
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "interrupted"
    assert [path.name for path in state.checkpoints_of(out)] == [f"{record['step']:07d}.pt"]


def test_an_error_within_a_run_is_its_status(tmp_path: Path, data: str) -> None:
    def breaks(step: int, _model: Any) -> list[Row]:
        raise OSError(28, "No space left on device", "results.jsonl")

    recipe = tiny(data=data, split="train", eval_every=2)
    with pytest.raises(OSError, match="No space"):
        run(recipe, tmp_path / "run", monitors=[breaks])
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["reason"]) == ("failed", "[Errno 28] No space left on device: 'results.jsonl'")
    run(recipe, tmp_path / "run", resume=True)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record.get("reason")) == ("done", None)


# --- tables


def test_rows_are_on_the_disk_before_the_checkpoint_after_them(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def watched_sync(handle: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    def watched_replace(self: Path, target: Path) -> Path:
        events.append(Path(target).name)
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    assert attempt(tiny(data=data, split="train", max_steps=4, checkpoint_every=2, eval_every=1), tmp_path / "run")
    before = events[: events.index("0000002.pt")]
    assert {"log.jsonl", "results.jsonl", "protocols.json"} <= set(before)
    end = max(number for number, name in enumerate(events) if name == "run.json")
    last = events[events.index("0000004.pt") : end]
    assert {"log.jsonl", "results.jsonl"} <= set(last)  # "done" stands for rows of the last step, too


def test_the_trainer_keeps_no_table_in_memory(short: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, expected = short
    shutil.copytree(expected, tmp_path / "run")
    columns = {"run": "run", "system": "REPA", "method": "repa", "train_seed": 0}
    curves = [make_row(metric="loss", value=1.0, step=step, **columns) for step in range(6, 1006)]
    results.append(tmp_path / "run" / "log.jsonl", curves)
    writer = Writer(tmp_path / "run", recipe, columns, 900)
    assert len(writer._ahead) == 105  # what training will come to again
    for step in range(901, 2000):
        writer.curves(step, {"loss": 2.0, "other": 3.0})
    assert writer._ahead == set()
    rows = results.read(tmp_path / "run" / "log.jsonl")
    assert [row.value for row in rows if row.metric == "loss" and row.step in (905, 1005, 1006)] == [1.0, 1.0, 2.0]
    assert len([row for row in rows if row.metric == "other"]) == 1099
    lines = (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(rows)
