"""Stopping and continuing: after a kill at any moment, or Ctrl-C, a resumed run equals one that never stopped."""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import files_of, finish, launch, run, save_small_data, tiny

from repa_eval.errors import Failure, UserError
from repa_eval.monitors import of_recipe
from repa_eval.train import state
from repa_eval.train.recipe import Recipe

TRAIN = "repa_eval.train.cli"
MEASURED = {"eval_every": 30, "num_samples": 16, "num_steps": 2}


class Killed(BaseException):
    """Stands for SIGKILL inside one process."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_small_data(tmp_path_factory.mktemp("data") / "small.npz")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: str) -> Path:
    """The run that never stopped, trained by the command line in a process of its own."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = tiny("repa", data=data, split="train", max_steps=150, checkpoint_every=10, **MEASURED)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.to_dict()))
    code, _, err = finish(start(folder / "recipe.yaml", folder / "run"))
    assert code == 0, err
    return folder


def start(recipe: Path, out: Path, *more: str) -> Any:
    return launch(TRAIN, "--recipe", recipe, "--out", out, "--device", "cpu", "--quiet", *more, cwd=recipe.parent)


def wait_for(process: Any, log: Path, size: int) -> None:
    """Return as soon as the curves have grown to `size` bytes."""
    limit = time.monotonic() + 60
    while not (log.is_file() and log.stat().st_size >= size):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < limit
        time.sleep(0.001)


def rows_of(table: bytes) -> list[dict[str, Any]]:
    """The rows of a table; seconds are the one thing that a clock decides."""
    rows = [json.loads(line) for line in table.splitlines()]
    return [{**row, "value": None} if row["metric"] == "train_seconds" else row for row in rows]


def assert_same_run(a: Path, b: Path) -> None:
    """The same files with the same bytes, but for seconds; no row twice."""
    mine, theirs = files_of(a), files_of(b)
    assert sorted(mine) == sorted(theirs)
    for name, content in mine.items():
        if name == "log.jsonl":
            assert rows_of(content) == rows_of(theirs[name])
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
        wait_for(process, log, int(length * (kill + chance.uniform(0.05, 0.95)) / 3.5))
        time.sleep(chance.uniform(0, 0.02))
        os.kill(process.pid, signal.SIGKILL)
        code, _, _ = finish(process)
        assert code == -signal.SIGKILL, "it was too fast to be killed"
    assert json.loads((out / "run.json").read_text())["status"] == "running"
    code, _, err = finish(start(whole / "recipe.yaml", out, "--resume"))
    assert code == 0, err
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
    code, _, err = finish(launch(TRAIN, *words, "--device", "cpu", "--quiet", cwd=tmp_path))
    assert code == 0, err
    if stopped["step"] % 10:  # where it was stopped lies one checkpoint more
        state.checkpoint_path(out, stopped["step"]).unlink()
    assert_same_run(out, whole / "run")


# --- in this process, at every single moment that leaves a trace on the disk


def writes(monkeypatch: pytest.MonkeyPatch, die_at: int, *, after: bool) -> list[str]:
    """Count renames and appended lines; the one numbered `die_at` is the last thing that this trainer does."""
    done: list[str] = []
    replace, write = Path.replace, os.write

    def dying(what: str, act: Any) -> Any:
        done.append(what)
        if len(done) < die_at:
            return act()
        if len(done) == die_at and after:
            act()
        raise Killed

    def dying_write(handle: int, line: bytes) -> int:
        if len(done) == die_at - 1 and not after:
            write(handle, line[: len(line) // 2])  # killed within the line
        return dying("row", lambda: write(handle, line))

    monkeypatch.setattr(Path, "replace", lambda self, target: dying(Path(target).name, lambda: replace(self, target)))
    monkeypatch.setattr(os, "write", dying_write)
    return done


def attempt(recipe: Recipe, out: Path, **more: Any) -> bool:
    """Train; whether it ended without being killed."""
    try:
        run(recipe, out, monitors=of_recipe(recipe, out), **more)
    except Killed:
        gc.collect()  # closes the lock, as the end of a process does
        return False
    return True


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory, data: str) -> tuple[Recipe, Path]:
    recipe = tiny(
        "repa", data=data, split="train", max_steps=5, checkpoint_every=2, log_every=3, eval_every=2,
        num_samples=16, num_steps=1,
    )  # fmt: skip
    out = tmp_path_factory.mktemp("short") / "run"
    assert attempt(recipe, out)
    return recipe, out


def moments() -> Iterator[Any]:
    for number in range(1, 60):
        # the first files are each a moment of its own; rows within one table are much alike
        if number < 10 or number % 3 == 0:
            yield number


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_every_write(
    short: tuple[Recipe, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    recipe, expected = short
    seen = []
    for number in moments():
        out = tmp_path / str(number) / "run"
        with monkeypatch.context() as patch:
            done = writes(patch, number, after=after)
            ended = attempt(recipe, out)
        seen.append(done[-1])
        if ended:
            break
        assert attempt(recipe, out, resume=True)
        try:
            assert_same_run(out, expected)
        except AssertionError as error:
            raise AssertionError(f"killed {'after' if after else 'at'} write {number}, {done[-1]}: {error}") from error
        shutil.rmtree(out.parent)
    assert ended, "more moments are needed"
    assert {"run.json", "recipe.yaml", "0000002.pt", "protocols.json", "row"} <= set(seen)


def test_a_second_kill_while_resuming(
    short: tuple[Recipe, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, expected = short
    out = tmp_path / "run"
    for number in (20, 3, 5, 8, 4, 12):
        with monkeypatch.context() as patch:
            writes(patch, number, after=bool(number % 2))
            attempt(recipe, out, resume=True)
    assert attempt(recipe, out, resume=True)
    assert_same_run(out, expected)


def test_resuming_a_finished_run_changes_nothing(short: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, expected = short
    shutil.copytree(expected, tmp_path / "run")
    assert run(recipe, tmp_path / "run", resume=True) == state.checkpoint_path(tmp_path / "run", 5)
    assert files_of(tmp_path / "run") == files_of(expected)


def test_resuming_nothing_starts(short: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, expected = short
    assert attempt(recipe, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", expected)


def test_a_run_can_be_made_longer(short: tuple[Recipe, Path], tmp_path: Path, data: str) -> None:
    recipe, expected = short
    shutil.copytree(expected, tmp_path / "run")
    tree = {**recipe.to_dict(), "max_steps": 8}
    from repa_eval.train.recipe import resolve

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
    from repa_eval.train.recipe import resolve

    recipe, expected = short
    shutil.copytree(expected, tmp_path / "run")
    other = resolve(recipe.to_dict(), {key: 16 if key == "batch_size" else 3})
    before = files_of(tmp_path / "run")
    with pytest.raises(UserError, match=key):
        run(other, tmp_path / "run", resume=True)
    assert files_of(tmp_path / "run") == before


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(UserError, match="is not empty and holds no run; choose another --out"):
            run(tiny(), tmp_path, resume=resume)
    assert files_of(tmp_path) == {"notes.txt": b"mine"}


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None], ids=["empty", "text", "half"])
def test_a_damaged_checkpoint_is_named(short: tuple[Recipe, Path], tmp_path: Path, content: bytes | None) -> None:
    recipe, expected = short
    shutil.copytree(expected, tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "0000005.pt"
    last.write_bytes(last.read_bytes()[:2000] if content is None else content)
    with pytest.raises(Failure, match=r"0000005\.pt") as caught:
        run(recipe, tmp_path / "run", resume=True)
    assert "\n" not in str(caught.value)


def test_a_damaged_record_is_named(short: tuple[Recipe, Path], tmp_path: Path) -> None:
    shutil.copytree(short[1], tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text('{"run": ')
    with pytest.raises(Failure, match=r"run\.json is damaged"):
        run(short[0], tmp_path / "run", resume=True)
