"""The golden runner's own rules: every way in which a case must fail does fail."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import golden_runners
from golden_runners import NoRunnerError, Runner, compare, fill

ONE = np.array([3.0, 4.0])
SECOND = np.array([0.0, 1.0])
NAN = np.array([np.nan, 4.0])


@pytest.mark.parametrize(
    ("rule", "got", "wanted", "passes"),
    [
        ({"rel": 1e-3}, ONE + SECOND * 0.004, ONE, True),
        ({"rel": 1e-3}, ONE + SECOND * 0.006, ONE, False),
        ({"abs": 1e-2}, ONE + 0.009, ONE, True),
        ({"abs": 1e-2}, ONE + SECOND * 0.011, ONE, False),
        ({"rel": 1e-9, "abs": 1e-2}, ONE + 0.009, ONE, True),  # either one is enough
        ({"rel": 1e-2, "abs": 1e-9}, ONE + 0.009, ONE, True),
        ({"rel": 1e-9, "abs": 1e-9}, ONE + 0.009, ONE, False),
        ({"rel": 1.0}, np.zeros(2), np.zeros(2), True),
        ({"rel": 1.0}, np.full(2, 1e-30), np.zeros(2), False),
        ({"rel": 1.0}, NAN, ONE, False),
        ({"rel": 1.0}, ONE, NAN, False),
        ({"rel": 1e-9}, NAN, NAN, True),
        ({"rel": 1e-9}, np.array([np.inf, 1.0]), np.array([np.inf, 1.0]), True),
        ({"rel": 1e-9}, np.array([np.inf, 1.0]), np.array([-np.inf, 1.0]), False),
        ({"rel": 1.0}, ONE[:1], ONE, False),  # shapes never broadcast
        ({"rel": 1.0}, ONE[0], ONE[:1], False),
        ({"exact": True}, np.array([1, 2]), np.array([1, 2]), True),
        ({"exact": True}, np.array([1, 3]), np.array([1, 2]), False),
        ({"exact": True}, np.array(["a"]), np.array(["a"]), True),
        ({"between": [3.0, 4.0]}, ONE, np.zeros(2), True),
        ({"between": [3.0, 3.9]}, ONE, np.zeros(2), False),
        ({"between": [3.0, 4.0]}, NAN, np.zeros(2), False),
        ({"skip": "random"}, ONE, np.zeros(2), True),
        ({}, ONE, ONE, False),
        ({"rtol": 1.0}, ONE, ONE, False),  # a word we do not know is no tolerance
        ({"of": "change"}, ONE, ONE, False),
    ],
)
def test_rules(rule: dict[str, Any], got: np.ndarray, wanted: np.ndarray, passes: bool) -> None:
    assert (compare.problems({"*": rule}, {"x": wanted}, {"x": got}) == []) is passes


def test_change_is_compared_from_the_start() -> None:
    tol = {"*": {"rel": 1e-2, "of": "change"}}
    start, end = np.array([100.0]), np.array([100.1])
    got = {"w": np.array([100.11]), "start:w": start}
    assert compare.problems({"*": {"rel": 1e-2}}, {"w": end}, got) == []
    assert "relative 0.1" in compare.problems(tol, {"w": end}, got)[0]
    assert compare.problems(tol, {"w": end}, got | {"w": np.array([100.1005])}) == []
    assert "no 'start:w'" in compare.problems(tol, {"w": end}, {"w": end})[0]


def test_the_most_specific_entry_wins() -> None:
    tol = {name: {"abs": i} for i, name in enumerate(["*", "param:*", "param:w[0].*", "param:w", "p*"])}
    found = {name: compare.rule_for(name, tol) for name in ("loss", "param:b", "param:w[0].x", "param:w0.x", "param:w")}
    assert [rule["abs"] for rule in found.values() if rule] == [0, 1, 2, 1, 3]
    assert compare.rule_for("loss", {"grad*": {}, "los": {}}) is None


def test_nothing_passes_by_being_absent() -> None:
    tol = {"a": {"rel": 1.0}}
    assert compare.problems(tol, {"a": ONE}, {}) == ["a: not computed by the runner"]
    assert compare.problems(tol, {"a": None}, {"a": ONE}) == ["a: listed in the json, missing in the npz"]  # type: ignore[dict-item]
    assert compare.problems(tol, {"b": ONE}, {"b": ONE}) == ["b: no entry of `tol` matches it"]
    assert "lists no outputs" in compare.problems(tol, {}, {"a": ONE})[0]
    assert compare.problems({"a": {"skip": "why"}}, {"a": None}, {}) == []  # type: ignore[dict-item]


def test_state_dict_cases_compare_names_and_shapes() -> None:
    case = {"state_dict": {"w": [2, 3], "b": [2]}, "state_dict_small": {"w": [1]}, "n_params": 8}
    wanted = compare.expected(case, {}, Runner(lambda case, arrays: {}, None))
    assert set(wanted) == {"state_dict:w", "state_dict:b", "state_dict_small:w"}
    tol = {"*": {"exact": True}}
    assert compare.problems(tol, wanted, wanted) == []
    assert compare.problems(tol, wanted, wanted | {"state_dict:c": np.array([1])}) == [
        "state_dict:c: not in the published list"
    ]
    assert "state_dict:w" in compare.problems(tol, wanted, wanted | {"state_dict:w": np.array([3, 2])})[0]


def write_case(folder: Path, case: dict[str, Any], **arrays: np.ndarray) -> Path:
    path = folder / "made_up" / "one.json"
    path.parent.mkdir()
    path.write_text(json.dumps(case), encoding="utf-8")
    np.savez(path.with_suffix(".npz"), **arrays)
    return path


def test_a_case_is_read_run_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = {
        "kind": "double",
        "outputs": {"y": [[2], ""], "z": [[], ""]},
        "tol": {"y": {"rel": 0.01}, "z": {"skip": "-"}},
    }
    path = write_case(tmp_path, case, x=ONE, y=2 * ONE, z=np.array(0.0))
    with pytest.raises(NoRunnerError, match="no runner for system 'made_up', kind 'double'"):
        compare.check(path)
    seen: list[set[str]] = []

    def double(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        seen.append(set(arrays))
        return {"y": 2 * arrays["x"]}

    monkeypatch.setitem(golden_runners._RUNNERS, ("made_up", "double"), Runner(double, None))
    assert compare.check(path) == ([], ["y"])
    assert seen == [{"x"}]  # the expected values are not shown to the runner


def pytest_on(folder: Path) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "pytest", "tests/test_golden.py", "-q", "--golden-dir", str(folder)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def test_an_empty_folder_and_an_unknown_kind_fail(tmp_path: Path) -> None:
    empty = pytest_on(tmp_path)
    assert empty.returncode == 1
    assert "there is nothing to compare" in empty.stdout
    write_case(tmp_path, {"kind": "unheard-of", "outputs": {}, "tol": {}})
    unknown = pytest_on(tmp_path)
    assert unknown.returncode == 1
    assert "[made_up/one]" in unknown.stdout
    assert "no runner for system 'made_up', kind 'unheard-of'" in unknown.stdout


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.linear = nn.Linear(4, 3)
        self.a_table = nn.Buffer(torch.full((2, 2), 7.0))


def test_fill_follows_the_rule() -> None:
    model = Small()
    fill.fill(model, keep=["a_table"])
    names = sorted(model.state_dict())
    assert names.index("a_table") == 0  # kept, but counts

    def drawn(name: str, *shape: int) -> np.ndarray:
        return np.random.RandomState(names.index(name)).standard_normal(shape)

    expected = {
        "linear.weight": drawn("linear.weight", 3, 4) / 2.0,
        "linear.bias": 0.2 * drawn("linear.bias", 3),
        "norm.weight": 1.0 + 0.2 * drawn("norm.weight", 4),
        "norm.running_var": 1.0 + 0.2 * np.abs(drawn("norm.running_var", 4)),
        "norm.running_mean": 0.2 * drawn("norm.running_mean", 4),
    }
    for name, value in expected.items():
        assert np.array_equal(model.state_dict()[name].numpy(), value.astype(np.float32)), name
    assert (model.a_table == 7.0).all()
    assert model.norm.num_batches_tracked == 0
    with pytest.raises(KeyError, match="pos_embed"):
        fill.fill(model, keep=["pos_embed"])
