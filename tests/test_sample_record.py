"""How many samples were wanted, what is said where others are there, and what killed processes leave behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from repa_eval.api.sample_quality import fid as measured
from repa_eval.cli import main as repa_eval
from repa_eval.errors import Failure, UserError
from repa_eval.evaluation.evaluators import NOT_IN_PROTOCOL
from repa_eval.runtime.files import is_leftover, remove_leftovers, temporary_name, write_atomic
from repa_eval.sampling.sample_files import SampleArray, SampleFolder, open_samples
from repa_eval.sampling.sample_record import NUM, check_complete, read_record, record_path

NAMES = ["s", "s.npz"]


@pytest.fixture
def dead() -> int:
    """The number of a process that has ended."""
    return int(subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True).stdout)


def add(path: Path, count: int, *, stop: int | None = None, flat: bool = False) -> None:
    """What `repa-eval sample --num COUNT` does, up to sample STOP."""
    samples = open_samples(path, {"seed": 0}, flat=flat)
    missing = samples.missing(count)[:stop]
    grey = (torch.tensor(missing, dtype=torch.int64) % 256).to(torch.uint8)
    samples.add(missing, grey[:, None, None, None].expand(-1, 1, 8, 8))
    if stop is None:
        samples.finish(np.zeros(count, np.int64))


def fid(path: Path) -> Result:
    words = ["--reference", "digits", "--extractor", "digits", "--metrics", "fd", "--quiet"]
    return CliRunner().invoke(repa_eval, ["fid", "--samples", str(path), *words])


# --- how many were wanted


@pytest.mark.parametrize("name", NAMES)
def test_the_record_says_how_many_were_wanted(name: str, tmp_path: Path) -> None:
    add(tmp_path / name, 6)
    assert read_record(tmp_path / name) == {"seed": 0, NUM: 6}
    assert fid(tmp_path / name).exit_code == 0
    assert NUM in NOT_IN_PROTOCOL


@pytest.mark.parametrize("flat", [False, True])
def test_samples_that_are_not_complete_are_not_measured(flat: bool, tmp_path: Path) -> None:
    path = tmp_path / "s"
    add(path, 40_000, stop=367, flat=flat)
    done = fid(path)
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert f"{path} contains 367 of 40,000 samples: their generation was interrupted" in done.stderr
    with pytest.raises(UserError, match="367 of 40,000"):
        measured(path, "digits", extractor="digits", metrics="fd")
    record = json.loads(record_path(path).read_text())
    record_path(path).write_text(json.dumps({**record, NUM: 367}))  # as the error advises
    assert fid(path).exit_code == 0


def test_a_sample_that_was_removed_is_missed(tmp_path: Path) -> None:
    add(tmp_path / "s", 12)
    (tmp_path / "s" / "00000" / "000004.png").unlink()
    assert "contains 11 of 12 samples" in fid(tmp_path / "s").stderr
    add(tmp_path / "s", 12)
    assert fid(tmp_path / "s").exit_code == 0


def test_images_that_were_added_are_seen(tmp_path: Path) -> None:
    add(tmp_path / "s", 12)
    add(tmp_path / "t", 1)
    (tmp_path / "t" / "00000" / "000000.png").rename(tmp_path / "s" / "more.png")
    assert "contains 13 images, but samples.json records 12 samples" in fid(tmp_path / "s").stderr


@pytest.mark.parametrize("num", [None, "12", True, 2.5, [12]])
def test_records_of_others_say_no_number(num: Any, tmp_path: Path) -> None:
    check_complete(tmp_path, {} if num is None else {NUM: num}, 5)
    check_complete(tmp_path, None, 5)


# --- fewer or more than before


@pytest.mark.parametrize("name", NAMES)
def test_fewer_than_there_are_is_refused(name: str, tmp_path: Path) -> None:
    add(tmp_path / name, 6)
    with pytest.raises(
        UserError, match=r"contains 6 samples, 3 of them beyond the 3|finished and holds 6 samples, not 3"
    ):
        add(tmp_path / name, 3)
    assert (read_record(tmp_path / name) or {})[NUM] == 6
    add(tmp_path / name, 6)


def test_more_than_there_are_are_added(tmp_path: Path) -> None:
    add(tmp_path / "s", 6)
    add(tmp_path / "s", 9)
    assert read_record(tmp_path / "s") == {"seed": 0, NUM: 9}
    assert fid(tmp_path / "s").exit_code == 0


def test_fewer_than_were_wanted_may_be_enough(tmp_path: Path) -> None:
    for name in NAMES:
        add(tmp_path / name, 40, stop=5)
        add(tmp_path / name, 7)
        assert fid(tmp_path / name).exit_code == 0


def test_the_number_is_no_setting(tmp_path: Path) -> None:
    add(tmp_path / "s", 6)
    with pytest.raises(UserError, match=r"different settings \(seed\)"):
        SampleFolder(tmp_path / "s", {"seed": 1})


# --- what killed processes leave


def test_which_files_are_left_over(dead: int, tmp_path: Path) -> None:
    assert is_leftover(tmp_path / f".a.png.{dead}.tmp")
    for name in (
        f".a.png.{os.getpid()}.tmp",
        ".a.png.1.tmp",
        f"a.png.{dead}.tmp",
        ".a.tmp",
        ".a.x.tmp",
        f".a.{2**40}.tmp",
    ):
        assert not is_leftover(tmp_path / name), name
    mine, other = temporary_name(tmp_path / "a[1].npz"), tmp_path / f".b.npz.{dead}.tmp"
    for file in (mine, other, tmp_path / f".a[1].npz.{dead}.tmp", tmp_path / f".a1.npz.{dead}.tmp"):
        file.write_bytes(b"half")
    remove_leftovers(tmp_path / "a[1].npz")
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([mine.name, other.name, f".a1.npz.{dead}.tmp"])


def test_temporary_files_of_dead_processes_go(dead: int, tmp_path: Path) -> None:
    add(tmp_path / "s", 6)
    add(tmp_path / "flat", 6, flat=True)
    add(tmp_path / "s.npz", 6, stop=3)
    left = [
        tmp_path / "s" / "00000" / f".000003.png.{dead}.tmp", tmp_path / "flat" / f".000003.png.{dead}.tmp",
        tmp_path / f".s.npz.{dead}.tmp",
    ]  # fmt: skip
    kept = tmp_path / f".mine.{dead}.tmp"  # not ours
    for file in (*left, kept):
        file.write_bytes(b"half")
    add(tmp_path / "s", 6)
    add(tmp_path / "flat", 6, flat=True)
    add(tmp_path / "s.npz", 6)
    assert not [file for file in left if file.exists()]
    assert kept.exists()


def test_the_partial_folder_of_a_finished_npz_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *_arguments, **_options: None)  # killed before it
        add(tmp_path / "s.npz", 6)
    assert (tmp_path / ".s.npz.partial").exists()
    assert SampleArray(tmp_path / "s.npz", {"seed": 0}).missing(6) == []
    assert sorted(file.name for file in tmp_path.iterdir()) == ["s.npz", "s.npz.json"]


def test_a_damaged_npz_is_one_line(tmp_path: Path) -> None:
    add(tmp_path / "s.npz", 6)
    (tmp_path / "s.npz").write_bytes(b"PK")
    with pytest.raises(Failure, match=r"s\.npz cannot be read"):
        add(tmp_path / "s.npz", 6)


def test_names_that_are_not_utf8_are_written(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a.txt", "caf\udce9 ☃")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "caf\\udce9 ☃"


# --- pictures


@pytest.mark.parametrize("name", ["n.jpg", "n", "n.svg", "n.png.txt"])
def test_a_picture_is_a_png(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (["fid", "--samples", "s", "--neighbours", name], ["captions", "--ckpt", "x.pt", "--samples", name]):
        done = CliRunner().invoke(repa_eval, words)
        assert done.exit_code == 2
        assert f"{name}: the picture is a PNG; choose a name that ends in .png" in done.stderr
        assert not (tmp_path / name).exists()
