"""The table of results: append, read, merge, what a killed or a foreign writer leaves, protocols, several writers."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import environment
from repa_eval import __version__, results
from repa_eval.errors import Failure, UserError
from repa_eval.results import Row, make_row


def row(**columns: object) -> Row:
    return make_row(**{"metric": "cka", "value": 0.5, "run": "mine", "step": 1, **columns})


# --- rows


def test_a_row_says_its_version() -> None:
    assert row().version == __version__


def test_the_key_is_every_column_but_the_answer() -> None:
    base = row(layer=3, timestep=0.1, n=10, seed=0)
    for name in results.COLUMNS:
        changed = dataclasses.replace(base, **{name: "another" if name != "step" else 2})
        same = name in ("value", "stderr", "note", "version")
        assert (changed.key() == base.key()) == same, name


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_null_with_a_note(tmp_path: Path, value: float) -> None:
    made = row(value=value, stderr=value, note="few images")
    assert (made.value, made.stderr, made.note) == (None, None, f"few images; value is {value}")
    results.append(tmp_path, [made])
    [line] = (tmp_path / "results.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail)["value"] is None
    assert results.read(tmp_path) == [made]


def test_a_number_has_no_note() -> None:
    assert (row(value=0.0).value, row(value=0.0).note) == (0.0, None)
    assert row(value=None).note is None


# --- append, read, merge


def test_what_is_appended_is_read(tmp_path: Path) -> None:
    rows = [row(step=step, value=step / 7, stderr=0.1, layer=2, timestep=0.1) for step in range(5)]
    results.append(tmp_path / "new" / "run", rows[:2])
    results.append(tmp_path / "new" / "run" / "results.jsonl", rows[2:])
    results.append(tmp_path / "new" / "run", [])
    assert results.read(tmp_path / "new" / "run") == rows
    assert len((tmp_path / "new" / "run" / "results.jsonl").read_text().splitlines()) == 5


@given(st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=20), st.integers(-(2**63), 2**63))
def test_values_survive_exactly(value: float, name: str, seed: int) -> None:
    made = row(value=value, run=name, note=name, seed=seed)
    line = json.dumps(made.columns(), allow_nan=False).encode()
    assert results._parse(line, Path("t"), 1) == made


def test_the_last_row_of_a_key_wins(tmp_path: Path) -> None:
    results.append(tmp_path, [row(value=1.0), row(step=2, value=2.0), row(value=3.0)])
    assert [(found.step, found.value) for found in results.read(tmp_path)] == [(1, 3.0), (2, 2.0)]
    merged = results.merge([[row(value=1.0), row(step=2)], [row(value=5.0)]])
    assert [(found.step, found.value) for found in merged] == [(1, 5.0), (2, 0.5)]


def test_protocols_keep_numbers_apart(tmp_path: Path) -> None:
    results.append(tmp_path, [row(value=float(steps), protocol={"num_steps": steps}) for steps in (50, 250)])
    assert [found.value for found in results.read(tmp_path)] == [50.0, 250.0]


def test_an_old_name_of_a_metric_is_read_as_the_new_one(tmp_path: Path) -> None:
    results.append(tmp_path, [row(metric="cknna_torn"), row(metric="torn_cknna"), row(metric="cknna_permuted", step=2)])
    assert [found.metric for found in results.read(tmp_path)] == ["cknna_permuted", "torn_cknna", "cknna_permuted"]


def test_a_torn_last_line_is_ignored_and_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    results.append(tmp_path, [row(), row(step=2)])
    table = tmp_path / "results.jsonl"
    whole = table.read_bytes()
    for torn in (b'{"run": "mi', b"\xff\xfe", whole.splitlines()[0]):
        table.write_bytes(whole + torn)
        with caplog.at_level(logging.WARNING):
            assert len(results.read(tmp_path)) == 2
        assert "the last line is incomplete and was ignored" in caplog.text
        results.append(tmp_path, [row(step=3)])
        assert [found.step for found in results.read(tmp_path)] == [1, 2, 3]
        assert table.read_bytes().startswith(whole)


def test_a_table_that_is_not_ours(tmp_path: Path) -> None:
    table = tmp_path / "results.jsonl"
    for line, text in {
        "not json": "line 2: not JSON; is this a results table?",
        "[1, 2]": r"line 2: not a row of results \(no 'metric' column\)",
        '{"loss": 1}': r"line 2: not a row of results \(no 'metric' column\)",
        '{"metric": "cka", "epoch": 1, "acc": 2}': "line 2: unknown columns acc, epoch; is this a results table of",
        '{"metric": "cka", "value": true}': "line 2: value True is not a number",
        '{"metric": "cka", "value": [1]}': r"line 2: value \[1\] is not a number",
        '{"metric": "cka", "value": 1e400}': "line 2: value inf is not a number",
        '{"metric": "cka", "value": NaN}': "line 2: value nan is not a number",
        '{"metric": "cka", "stderr": "x"}': "line 2: stderr 'x' is not a number",
        '{"metric": "cka", "step": "abc"}': "line 2: step 'abc' is not a whole number",
        '{"metric": "cka", "step": 1.5}': r"line 2: step 1\.5 is not a whole number",
        '{"metric": "cka", "layer": true}': "line 2: layer True is not a whole number",
        '{"metric": "cka", "run": 5}': "line 2: run 5 is not a word",
        '{"metric": "cka", "note": ["a"]}': r"line 2: note \['a'\] is not a word",
        '{"metric": "cka", "run": "\\ud800"}': "line 2: run .* is not a word",
        '{"metric": null}': "line 2: metric None is not a word",
        '{"metric": ["a"]}': r"line 2: metric \['a'\] is not a word",
        '{"metric": "cka", "version": null}': "line 2: version None is not a word",
        '{"metric": "cka", "value": ' + "9" * 5000 + "}": "line 2: not JSON",
        "[" * 100_000: "line 2: not JSON",
    }.items():
        table.write_text('{"metric": "cka"}\n' + line + "\n")
        with pytest.raises(UserError, match=text):
            results.read(tmp_path)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no results at '.*': expected a run folder with results\.jsonl"):
        results.read(tmp_path)
    (tmp_path / "results.jsonl").touch()
    assert results.read(tmp_path) == []


# --- protocols


def test_the_hash_is_of_the_content_not_of_its_order() -> None:
    a, b = {"x": 1, "y": [1, {"p": 2, "q": None}]}, {"y": [1, {"q": None, "p": 2}], "x": 1}
    assert results.protocol_hash(a) == results.protocol_hash(b)
    assert len({results.protocol_hash(record) for record in (a, {**a, "x": 2}, {**a, "z": 0}, {"x": 1})}) == 4
    assert results.protocol_hash({}) == "44136fa355b3"  # sha256 of {}


def test_records_are_written_beside_the_table(tmp_path: Path) -> None:
    first, second = {"sampler": "ode", "steps": 50}, {"sampler": "ode", "steps": 250}
    rows = [row(protocol=first), row(step=2, protocol=second), row(step=3)]
    assert results.records_of(rows) == {results.protocol_hash(record): record for record in (first, second)}
    results.append(tmp_path, rows[:1])
    results.append(tmp_path, rows[1:])
    assert results.read_protocols(tmp_path) == {results.protocol_hash(record): record for record in (first, second)}
    before = (tmp_path / "protocols.json").stat().st_mtime_ns
    results.append(tmp_path, rows)
    assert (tmp_path / "protocols.json").stat().st_mtime_ns == before


def test_a_row_carries_its_record_which_is_no_column(tmp_path: Path) -> None:
    protocol = {"sampler": "ode", "steps": 50}
    made = row(protocol=protocol)
    protocol["steps"] = 250  # of the caller, who may go on with it
    moved = dataclasses.replace(made, metric="cka_floor")
    assert results.records_of([moved]) == {made.protocol: {"sampler": "ode", "steps": 50}}
    assert results.records_of(pickle.loads(pickle.dumps([made]))) == results.records_of([made])
    assert "record" not in results.COLUMNS
    assert "steps" not in repr(made)
    without = dataclasses.replace(made, record=None)
    assert (without, without.key(), hash(without)) == (made, made.key(), hash(made))
    results.append(tmp_path, [made])
    [line] = (tmp_path / "results.jsonl").read_text().splitlines()
    assert tuple(json.loads(line)) == results.COLUMNS
    [read] = results.read(tmp_path)
    assert (read, results.records_of([read])) == (made, {})


def test_damaged_records_are_named(tmp_path: Path) -> None:
    assert results.read_protocols(tmp_path) == {}
    for content in ("{", "[]"):
        (tmp_path / "protocols.json").write_text(content)
        with pytest.raises(Failure, match=r"protocols\.json is damaged"):
            results.read_protocols(tmp_path)


def test_a_record_must_be_plain() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        row(protocol={"x": math.nan})


# --- several writers


def test_two_processes_lose_no_row(tmp_path: Path) -> None:
    code = """
import sys
from repa_eval.results import append, make_row
who = sys.argv[1]
for i in range(60):
    common = dict(value=1.0, run=who, step=i, protocol={"who": who, "i": i})
    append(sys.argv[2], [make_row(metric="a", **common), make_row(metric="b", **common)])
"""
    writers = [
        subprocess.Popen([sys.executable, "-c", code, who, str(tmp_path / "t.jsonl")], env=environment())
        for who in ("a", "b", "c")
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    rows = results.read(tmp_path / "t.jsonl")
    assert len(rows) == 3 * 60 * 2
    assert {(found.run, found.step) for found in rows} == {(who, step) for who in "abc" for step in range(60)}
    assert {found.protocol for found in rows} == set(results.read_protocols(tmp_path))
    assert len(results.read_protocols(tmp_path)) == 3 * 60
    assert not list(tmp_path.glob("*.tmp"))


def test_nobody_sees_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.json"
    results.write_atomic(target, "old")

    def fail(self: Path, data: bytes) -> None:
        with open(self, "wb") as handle:
            handle.write(data[:1])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fail)
        with pytest.raises(OSError, match="No space"):
            results.write_atomic(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
    results.write_atomic(tmp_path / "deep" / "b", b"\x00")
    assert (tmp_path / "deep" / "b").read_bytes() == b"\x00"
