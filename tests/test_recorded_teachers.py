"""A checkpoint says which teachers it was trained with, their weights and the aligned block; commands use that."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from safetensors.torch import save_file

import repa_eval
from helpers import run, tiny
from repa_eval import checkpoints, results
from repa_eval.cli import main
from repa_eval.config import option
from repa_eval.interfaces.method import METHODS
from repa_eval.interfaces.teacher import RecordedTeacher, load_teacher
from repa_eval.train import state
from repa_eval.train.methods.vanilla import Vanilla

QUICK = ["--timesteps", "0.1", "--num-images", "20", "--device", "cpu", "--quiet", "--no-cache", "--json"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint of a run whose `digits-vit` had other weights, and the file of these."""
    folder = tmp_path_factory.mktemp("recorded")
    file = folder / "other.safetensors"
    save_file(load_teacher("digits-vit-random").network.state_dict(), file)
    return run(tiny("repa", teacher_weights=str(file)), folder / "run"), file


def test_the_teachers_are_recorded(trained: tuple[Path, Path]) -> None:
    checkpoint, file = trained
    recipe = state.load_checkpoint(checkpoint)["recipe"]
    assert recipe["teachers"] == [{"name": "digits-vit", "weights": str(file)}]
    assert recipe["aligned_layer"] == 1
    opened = checkpoints.load(checkpoint)
    assert opened.teachers == (RecordedTeacher("digits-vit", str(file)),)
    assert opened.aligned_layer == 1


def test_alignment_is_measured_with_the_weights_of_the_training(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, file = trained
    other, shipped = (load_teacher(name).digest for name in ("digits-vit-random", "digits-vit"))

    def used(*words: str) -> set[str]:
        rows = tmp_path / f"{len(list(tmp_path.iterdir()))}" / "results.jsonl"
        done = CliRunner().invoke(main, ["align", "--ckpt", str(checkpoint), *words, "--rows", str(rows), *QUICK])
        assert done.exit_code == 0, done.stderr
        return {str(record.get("teacher_hash")) for record in results.read_protocols(rows.parent).values()}

    assert used() == {other}
    assert used("--teacher", "digits-vit") == {shipped}
    assert used("--teacher", "digits-vit", "--teacher-weights", str(file)) == {other}
    grid = repa_eval.align(checkpoint, images="digits", layers=1, timesteps=[0.1], num_images=20)
    assert {record["teacher_hash"] for record in grid.protocols.values()} == {other}


def test_a_file_of_weights_that_is_gone_is_named(trained: tuple[Path, Path], tmp_path: Path) -> None:
    saved = state.load_checkpoint(trained[0])
    saved["recipe"]["teachers"] = [{"name": "digits-vit", "weights": "gone.safetensors"}]
    state.save_checkpoint(tmp_path / "moved.pt", saved)
    for command in ("align", "probe"):
        words = [command, "--ckpt", str(tmp_path / "moved.pt"), "--timesteps", "0.1", "--device", "cpu", "--quiet"]
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 2
        assert (
            "teacher weights 'gone.safetensors' do not exist; name the file of digits-vit, or another teacher"
            in done.stderr
        )


def test_a_checkpoint_that_records_options_alone_is_read(trained: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, file = trained
    saved = state.load_checkpoint(checkpoint)
    del saved["recipe"]["teachers"], saved["recipe"]["aligned_layer"]
    state.save_checkpoint(tmp_path / "older.pt", saved)
    opened = checkpoints.load(tmp_path / "older.pt")
    assert opened.teachers == (RecordedTeacher("digits-vit", str(file)),)
    assert opened.aligned_layer == 1


@dataclass(frozen=True, kw_only=True)
class OwnNames(Vanilla):
    """Vanilla with a guide, whose options have names of their own."""

    guide: str = option("digits-vit-random", help="a teacher")
    block: int = option(2, help="the aligned block")

    def teachers(self) -> list[str]:
        return [self.guide]

    def aligned_layer(self) -> int:
        return self.block


def test_a_method_may_name_its_options_as_it_likes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS._objects, "vanilla", OwnNames)
    opened = checkpoints.load(run(tiny("vanilla"), tmp_path / "run"))
    assert opened.teachers == (RecordedTeacher("digits-vit-random"),)
    assert opened.aligned_layer == 2
    info: dict[str, Any] = opened.info()
    assert (info["teacher"], info["encoder_depth"]) == ("digits-vit-random", 2)
