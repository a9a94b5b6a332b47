"""The table of results: append, read, merge, what a killed or a foreign writer leaves, protocols, several writers."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import logging
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
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


def test_numbers_of_other_libraries_become_plain_ones(tmp_path: Path) -> None:
    plain = row(step=7, layer=2, timestep=0.5, n=9, seed=3, value=1.5, stderr=0.25, run="5", note="runs/a")
    numpy_row = row(
        step=np.int64(7), layer=np.uint8(2), timestep=np.float32(0.5), n=np.array(9), seed=np.float64(3.0),
        value=np.float32(1.5), stderr=np.float64(0.25), run=5, note=Path("runs/a"),
    )  # fmt: skip
    torch_row = row(
        step=torch.tensor(7), layer=torch.tensor(2, dtype=torch.int16), timestep=torch.tensor(0.5), n=9.0, seed=3,
        value=torch.tensor(1.5, requires_grad=True), stderr=torch.tensor(0.25), run=np.str_("5"), note="runs/a",
    )  # fmt: skip
    unconverted = dataclasses.replace(plain, step=np.int64(7), value=np.float32(1.5), note=Path("runs/a"))  # type: ignore[arg-type]
    for made in (numpy_row, torch_row):
        assert made == plain
        assert {type(value) for value in made.columns().values()} <= {int, float, str, type(None)}
    results.append(tmp_path, [unconverted])
    assert results.read(tmp_path) == [plain]


@pytest.mark.parametrize(
    "columns",
    [
        {"step": "10"}, {"step": 1.5}, {"step": True}, {"layer": np.array([1, 2])}, {"timestep": math.nan},
        {"timestep": "0.1"}, {"n": 2**70}, {"value": "much"}, {"value": 10**400}, {"stderr": b"1"}, {"metric": None},
    ],
)  # fmt: skip
def test_a_column_of_another_kind_is_named(columns: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(columns))} .* of a row is not a"):
        row(**columns)


def test_a_name_that_is_no_utf8_can_be_read_again(tmp_path: Path) -> None:
    made = row(run=os.fsdecode(b"caf\xe9"))
    results.append(tmp_path, [made])
    assert results.read(tmp_path) == [made]
    assert made.run == "caf\\xe9"


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
        '{"metric": "cka", "step": ' + "9" * 400 + "}": r"line 2: step 9+.*9 is not a whole number",
        "[" * 100_000: "line 2: not JSON",
    }.items():
        table.write_text('{"metric": "cka"}\n' + line + "\n")
        with pytest.raises(UserError, match=text):
            results.read(tmp_path)


def test_a_line_without_end_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    table = tmp_path / "results.jsonl"
    table.touch()
    os.truncate(table, 1 << 33)  # a hole of 8 GiB, as a crash may leave
    with pytest.raises(UserError, match="line 1: longer than"):
        results.read(tmp_path)


@pytest.mark.parametrize("name", ["rows.csv", "rows.json", "rows.txt", "out.parquet"])
def test_a_table_is_a_jsonl_file_or_a_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"a table of results is a file NAME\.jsonl or a folder"):
        results.append(tmp_path / name, [row()])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / name).mkdir()
    assert results.table_path(tmp_path / name) == tmp_path / name / "results.jsonl"  # a folder that is called so


@pytest.mark.parametrize("name", ["runs", "lr-1e-4", "v1.5", "lr0.001", "a.jsonl/.."])
def test_a_folder_may_have_a_dot_in_its_name(tmp_path: Path, name: str) -> None:
    assert results.table_path(tmp_path / name) == tmp_path / name / "results.jsonl"


def test_on_a_full_disk_no_row_is_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results.append(tmp_path, [row()])
    table = tmp_path / "results.jsonl"
    before, room, write = table.read_bytes(), [40], os.write

    def short(handle: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = write(handle, data[: room[0]])
        room[0] -= written
        return written

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", short)
        with pytest.raises(OSError, match=r"No space left on device; no row was added.*results\.jsonl"):
            results.append(tmp_path, [row(step=2), row(step=3)])
    assert table.read_bytes() == before
    results.append(tmp_path, [row(step=2)])
    assert [found.step for found in results.read(tmp_path)] == [1, 2]


def test_a_write_that_takes_a_part_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:7]))
    results.append(tmp_path, [row(step=step) for step in range(3)])
    assert [found.step for found in results.read(tmp_path)] == [0, 1, 2]


def test_append_reads_the_end_of_a_table_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results.append(tmp_path, [row(step=step) for step in range(3000)])
    read, pread = [0], os.pread

    def counted(handle: int, count: int, offset: int) -> bytes:
        found = pread(handle, count, offset)
        read[0] += len(found)
        return found

    monkeypatch.setattr(os, "pread", counted)
    results.append(tmp_path, [row(step=3000)])
    assert read[0] <= 1 << 16 < (tmp_path / "results.jsonl").stat().st_size


@pytest.mark.parametrize("torn", [0, 1, 70_000, 200_000])
def test_a_torn_line_of_any_length_is_cut(tmp_path: Path, torn: int) -> None:
    results.append(tmp_path, [row()])
    table = tmp_path / "results.jsonl"
    whole = table.read_bytes()
    for start in (whole, b""):
        table.write_bytes(start + b"\0" * torn)
        results.append(tmp_path, [row(step=2)])
        assert table.read_bytes().startswith(start + b'{"run"')


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
    surrogate, deep, huge = b'{"a": {"b": "\\ud800"}}', b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}", b"1" * 5000
    for content in (b"{", b"[]", b'{"a": 5}', '{"a": {}}'.encode("utf-16"), b'{"a": {"b": "\xff"}}', surrogate, deep,
                    b'{"a": {"b": ' + huge + b"}}", b'{"a": {"b": NaN}}', b'{"a": {"b": 1e999}}'):  # fmt: skip
        (tmp_path / "protocols.json").write_bytes(content)
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

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            super().write(data[:1])
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("repa_eval.runtime.files.open", Full, raising=False)
        with pytest.raises(OSError, match="No space"):
            results.write_atomic(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
    results.write_atomic(tmp_path / "deep" / "b", b"\x00")
    assert (tmp_path / "deep" / "b").read_bytes() == b"\x00"


def test_rows_that_are_there_are_not_appended_again(tmp_path: Path) -> None:
    row = make_row(metric="a", value=1.0, step=3, n=4, protocol={"kind": "x"})
    again, other = make_row(metric="a", value=2.0, step=3, n=4, protocol={"kind": "x"}), make_row(metric="b", value=3.0)
    assert results.append_new(tmp_path, [row, again]) == [row]
    assert results.append_new(tmp_path, [again, other, other]) == [other]
    assert results.append_new(tmp_path, []) == []
    assert [(one.metric, one.value) for one in results.read(tmp_path)] == [("a", 1.0), ("b", 3.0)]
    assert len((tmp_path / results.TABLE).read_text().splitlines()) == 2


def test_a_repeated_command_doubles_no_row(tmp_path: Path) -> None:
    rows = [make_row(metric="cka", layer=layer, value=0.5, protocol={"n": 3}) for layer in (1, 2)]
    for _ in range(2):
        results.append_changed(tmp_path, rows)
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 2
    results.append_changed(tmp_path, [rows[0], dataclasses.replace(rows[1], value=0.25)])
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 3
    assert [row.value for row in results.read(tmp_path)] == [0.5, 0.25]


def test_rows_are_not_lost_on_a_damaged_table(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text("[]\n")
    results.append_changed(tmp_path, [make_row(metric="cka", value=0.5)])
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 2
