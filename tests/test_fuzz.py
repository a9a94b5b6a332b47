"""Files changed at random: every reader answers rightly or in one line, soon, and in little memory."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import fuzz_forms
import fuzzing
from fuzz_targets import Target, targets
from repa_eval.errors import Failure, UserError

NAMES = (
    "results.jsonl", "log.jsonl", "protocols.json", "run.json", "run.json of a report", "recipe.yaml",
    "recipe.yaml of a run", "plug-in records", "samples.json", "prepare.json", "media .json", "media .png",
    "npz of images", "npz of statistics", "npz of features", "zip of images", "one image",
    "torch-fidelity's statistics", "torch-fidelity's features", "checkpoint of ours", "checkpoint to resume from",
    "checkpoint of REPA's trainer", "bare weights", "pickle", "config.json", "index of shards",
    "diffusers' config.json", "diffusers' scheduler", "safetensors", "bank .safetensors", "bank .pth", "bank of parts",
    "bank .npy", "soft tokens", "dataset.json", "prepare.json of latents", "moments", "features of captions",
    "shard of latents", "statistics of latents",
)  # fmt: skip


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    return targets(tmp_path_factory.mktemp("made"))


def test_every_target_is_fuzzed(known: dict[str, Target]) -> None:
    assert set(known) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_changed_files(name: str, known: dict[str, Target], tmp_path: Path) -> None:
    target = known[name]
    path = target.lay_out(tmp_path / "files")
    assert fuzzing.outcome(lambda: target.read(path)) is None
    if target.opens:
        target.read(path)
    count = fuzzing.inputs_of_each(len(NAMES))
    findings = fuzzing.fuzz(
        name, path, target.changed, target.read, count, Path(os.environ.get("REPA_EVAL_FUZZ_SAVE", tmp_path / "found"))
    )
    assert not findings, "\n".join(map(str, findings[:20]))


# --- the fuzzing itself


class UncleanError(UserError):
    def __str__(self) -> str:
        return "two\nlines"


class WordyError(UserError):
    def __str__(self) -> str:
        return "word " * 1000


def never_ends(_path: Path) -> None:
    while True:
        pass


def takes_memory(_path: Path) -> int:
    return sum(np.ones(fuzzing.MEMORY // 8 + (32 << 20) // 8).shape)


def raises(error: BaseException) -> Callable[[Path], None]:
    def read(_path: Path) -> None:
        raise error

    return read


@pytest.mark.parametrize(
    ("read", "what"),
    [
        (raises(KeyError("name")), "KeyError at test_fuzz.py"),
        (raises(SystemExit(3)), "SystemExit"),
        (raises(MemoryError()), "MemoryError"),
        (raises(RecursionError("deep")), "RecursionError"),
        (raises(UncleanError("")), "not one printable line"),
        (raises(WordyError("")), "has 5000 letters"),
        (never_ends, "takes longer than 0.2 seconds"),
        (takes_memory, "takes 1.0 GB"),
    ],
)
def test_a_reader_that_answers_otherwise_is_found(
    read: Callable[[Path], None], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzzing, "SECONDS", 0.2 if read is never_ends else fuzzing.SECONDS)
    path = tmp_path / "a.json"
    changed = functools.partial(fuzz_forms.as_json, {"a": [1, "b"], "c": None})
    findings = fuzzing.fuzz("a kind", path, changed, read, 2, tmp_path / "found")
    assert [finding.number for finding in findings] == [0, 1]
    assert all(what in str(finding) for finding in findings)
    for finding in findings:
        assert 'python tests/fuzzing.py "a kind" ' in str(finding)
        assert finding.saved is not None
        assert finding.saved.read_bytes() == changed(fuzzing.random_of("a kind", finding.number))  # made again


def test_what_is_allowed() -> None:
    for error in (UserError("one line"), Failure("one line\x1b[31m\nand another, cleaned")):
        assert fuzzing.outcome(functools.partial(raises(error), Path())) is None
    assert fuzzing.outcome(lambda: None) is None
    with pytest.raises(KeyboardInterrupt):
        fuzzing.outcome(functools.partial(raises(KeyboardInterrupt()), Path()))


def test_inputs_differ_and_are_many(known: dict[str, Target]) -> None:
    """Nearly every input is a file of its own, other than the valid one."""
    for name, target in known.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = {target.changed(fuzzing.random_of(name, number)) for number in range(20)}
        assert len(made - {target.valid}) >= 12, name
