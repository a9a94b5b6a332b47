"""The one table of results: results.jsonl, a row per number, each with the hash of the protocol that produced it.

Append-only under a file lock; readers take the last row per key and ignore a torn last line.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import math
import operator
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from repa_eval import __version__
from repa_eval.errors import LONGEST_WORD, Failure, UserError, short_repr, valid_text
from repa_eval.runtime.files import read_object, write_atomic
from repa_eval.runtime.run_record import RUN as RUN

log = logging.getLogger(__name__)

TABLE = "results.jsonl"
CURVES = "log.jsonl"
PROTOCOLS = "protocols.json"
SAMPLES, SAMPLES_HASH = "samples", "samples_hash"  # protocol entries: the name and content of samples of other programs


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured number. Columns that do not apply are None; `value` is None where the answer is not a number."""

    run: str | None = None  # name of the run
    system: str | None = None  # REPA, vanilla SiT, ...
    method: str | None = None  # registered training method
    step: int | None = None  # training step of the checkpoint
    weights: str | None = None  # ema or online
    layer: int | None = None  # number of the block whose output was taken, 1-based
    timestep: float | None = None  # t in [0, 1], 1 = noise
    metric: str
    value: float | None = None
    stderr: float | None = None
    n: int | None = None  # number of samples behind the value
    seed: int | None = None  # of the evaluation
    train_seed: int | None = None
    protocol: str | None = None  # hash of the record in protocols.json
    note: str | None = None
    version: str = __version__
    record: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)  # no column: see `append`

    def key(self) -> tuple[Any, ...]:
        """Return what identifies the number: every column but value, stderr, note and version."""
        return tuple(getattr(self, name) for name in _KEY)

    def columns(self) -> dict[str, Any]:
        """Return {column: value}: what a line of results.jsonl holds."""
        return {name: getattr(self, name) for name in COLUMNS}


COLUMNS = tuple(column.name for column in fields(Row) if column.name != "record")
_RENAMED = {"_torn": "_permuted"}  # endings of metrics in tables of earlier versions
_KINDS: dict[str, type] = {
    column.name: {"str": str, "int": int, "float": float}[str(column.type).partition(" ")[0]]
    for column in fields(Row)
    if column.name in COLUMNS
}
_REQUIRED = ("metric", "version")
_KIND_NAMES = {str: "a word", int: "a whole number", float: "a number"}
_LARGEST = {int: 2**64 - 1, float: sys.float_info.max}
_LONGEST = 1 << 24  # bytes of a line: the note of a row may hold the confusion of many classes
_KEY = tuple(name for name in COLUMNS if name not in {"value", "stderr", "note", "version"})


def protocol_hash(record: Mapping[str, Any]) -> str:
    """Return the first 12 hex digits of the sha256 of the record's canonical JSON."""
    return hashlib.sha256(_canonical(record).encode()).hexdigest()[:12]


def make_row(*, value: float | None, protocol: Mapping[str, Any] | None = None, **columns: Any) -> Row:
    """Return a row; a value or stderr that is not finite becomes None with a note.

    protocol: the record of how the number was taken. Its hash becomes a column, and the row carries the record itself,
    so that `append` can write it beside the table. Numbers may be those of numpy and torch, and words any object such
    as a Path. UserError for a column whose value is of another kind.
    step_from: where the step is from if the checkpoint does not record it ("file name"); an entry of the protocol.
    """
    step_from = columns.pop("step_from", None)
    if step_from is not None and protocol is not None:
        protocol = {**protocol, "step_from": step_from}
    columns = {name: _plain(name, column) if name != "stderr" else column for name, column in columns.items()}
    note = columns.pop("note", None)
    value, stderr = _converted("value", value), _converted("stderr", columns.pop("stderr", None))
    if value is not None and not math.isfinite(value):
        note = "; ".join(filter(None, (note, f"value is {value}")))
        value = None
    if stderr is not None and not math.isfinite(stderr):
        stderr = None
    digest = None if protocol is None else protocol_hash(protocol)
    record = None if protocol is None else dict(protocol)
    return Row(value=value, stderr=stderr, note=note, protocol=digest, record=record, **columns)


def records_of(rows: Iterable[Row]) -> dict[str, dict[str, Any]]:
    """Return hash -> record of the rows that carry theirs; rows read from a table do not (see `read_protocols`)."""
    return {row.protocol: dict(row.record) for row in rows if row.protocol is not None and row.record is not None}


def append(path: str | Path, rows: Iterable[Row]) -> None:
    """Append rows to a table (a run folder or a .jsonl file) and their protocol records to the file beside it.

    The records are written before the rows, so that no row points at nothing. On a full disk no row is added.
    """
    _append(path, list(rows))


def append_new(path: str | Path, rows: Iterable[Row]) -> list[Row]:
    """Append those rows whose keys the table does not hold yet, each key once, and return them.

    Nobody can add a row between the look and the writing. For the rest, see `append`.
    """
    return _append(path, list(rows), chosen=_unknown)


def append_changed(path: str | Path, rows: Iterable[Row]) -> None:
    """Append those rows that differ from what the table says last: a command that is repeated adds nothing.

    All of them where the table is damaged. For the rest, see `append`.
    """
    _append(path, list(rows), chosen=_changed)


def _append(
    path: str | Path, rows: list[Row], *, chosen: Callable[[list[Row], Path], list[Row]] | None = None
) -> list[Row]:
    table = table_path(path)
    table.parent.mkdir(parents=True, exist_ok=True)
    with _locked(table):
        if chosen is not None:
            rows = chosen(rows, table)
        protocols = records_of(rows)
        if protocols:
            _merge_protocols(table.parent / PROTOCOLS, protocols)
        if rows:
            _write_lines(table, "".join(_line(row) for row in rows).encode())
    return rows


def _unknown(rows: list[Row], table: Path) -> list[Row]:
    """Return the rows whose keys are not in the table, the first one of every key."""
    first: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        first.setdefault(row.key(), row)
    for row in scan(table) if first and table.is_file() else ():
        first.pop(row.key(), None)
    return list(first.values())


def _changed(rows: list[Row], table: Path) -> list[Row]:
    """Return the rows that are not the last ones of their keys in the table."""
    keys = {row.key() for row in rows}
    try:
        last = {row.key(): row.columns() for row in scan(table) if row.key() in keys} if table.is_file() else {}
    except UserError:
        return rows
    return [row for row in rows if last.get(row.key()) != row.columns()]


def read(path: str | Path) -> list[Row]:
    """Return the rows of a table (a run folder or a .jsonl file), the last one of every key, in order of appearance.

    UserError if there is no such table or if it holds something else than rows.
    """
    return merge([scan(path)])


def scan(path: str | Path) -> Iterator[Row]:
    """Yield the rows of a table line by line, those that a later row of equal key replaces among them.

    UserError as for `read`.
    """
    table = table_path(path)
    if not table.is_file():
        raise UserError(f"no results at {str(path)!r}: expected a run folder with {TABLE}, or such a file")
    for number, line in _lines_of(table):
        if line.endswith(b"\n"):
            yield _parse(line, table, number)
        else:
            log.warning("%s: the last line is incomplete and was ignored", table)


def check(path: str | Path) -> tuple[list[Row], list[str]]:
    """Return the rows of a table, and a line of text for each of its lines that holds none."""
    table = table_path(path)
    rows, faults = [], []
    try:
        for number, line in _lines_of(table):
            if not line.endswith(b"\n"):
                faults.append(f"{table}: the last line is incomplete; the next writer cuts it off")
                continue
            try:
                rows.append(_parse(line, table, number))
            except UserError as error:
                faults.append(str(error))
    except UserError as error:
        faults.append(str(error))
    return rows, faults


def _lines_of(table: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (number, line) of the lines of a table that are not empty; only the last one may have no line break."""
    with open(table, "rb") as lines:
        for number, line in enumerate(iter(lambda: lines.readline(_LONGEST), b""), 1):
            if len(line) == _LONGEST and not line.endswith(b"\n"):
                raise UserError(f"{table}, line {number}: longer than {_LONGEST:,} bytes; is this a results table?")
            if line.strip():
                yield number, line


def read_protocols(path: str | Path) -> dict[str, dict[str, Any]]:
    """Return hash -> record of the protocols beside a table; empty if there are none."""
    file = table_path(path).parent / PROTOCOLS
    if not file.is_file():
        return {}
    records = read_object(file)
    if not all(isinstance(record, dict) for record in records.values()):
        raise Failure(f"{file} is damaged: expected an object of protocol records")
    return records


def merge(tables: Iterable[Iterable[Row]]) -> list[Row]:
    """Return the rows of several tables as one, the last row of every key winning."""
    latest: dict[tuple[Any, ...], Row] = {}
    for table in tables:
        for row in table:
            latest[row.key()] = row
    return list(latest.values())


def table_path(path: str | Path) -> Path:
    """Return the .jsonl file meant by a run folder or by a path to a table.

    UserError for the name of another kind of file, such as rows.csv; a folder may be called v1.5.
    """
    path = Path(path)
    if path.is_dir():
        return path / TABLE
    if path.suffix == ".jsonl":
        return path
    if path.is_file() or path.suffix[1:2].isalpha():
        raise UserError(f"{path}: a table of results is a file NAME.jsonl or a folder, which holds {TABLE}")
    return path / TABLE


def _canonical(record: Mapping[str, Any]) -> str:
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _merge_protocols(file: Path, new: Mapping[str, Mapping[str, Any]]) -> None:
    records = read_protocols(file.parent)
    if all(digest in records for digest in new):
        return
    records.update({digest: dict(record) for digest, record in new.items()})
    write_atomic(file, json.dumps(records, indent=1, sort_keys=True, allow_nan=False) + "\n")


def _line(row: Row) -> str:
    columns = {name: _plain(name, value) for name, value in row.columns().items()}
    return json.dumps(columns, allow_nan=False) + "\n"


def _plain(name: str, value: Any) -> Any:
    """Return the value of a column as JSON can hold it, whichever library it is from; UserError for another kind."""
    plain = _converted(name, value)
    if name in COLUMNS and (plain is not None or name in _REQUIRED) and not _fits(_KINDS[name], plain):
        raise _misfit(name, value)
    return plain


def _converted(name: str, value: Any) -> Any:
    """Return the value as str, int or float, as its column asks for; UserError where that cannot be."""
    if value is None or name not in COLUMNS:
        return value  # Row() names a column that does not exist
    try:
        plain = _CONVERT[_KINDS[name]](value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        plain = None
    if plain is None:
        raise _misfit(name, value)
    return plain


def _misfit(name: str, value: Any) -> UserError:
    return UserError(f"{name} {short_repr(value)} of a row is not {_KIND_NAMES[_KINDS[name]]}")


def _whole(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return operator.index(value)


def _word(value: Any) -> str:
    return valid_text(str(value))


def _number(value: Any) -> float | None:
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, str | bytes) else float(value)


_CONVERT: dict[type, Callable[[Any], Any]] = {int: _whole, str: _word, float: _number}


def _write_lines(table: Path, data: bytes) -> None:
    """Write whole lines at the end of the table, of which the lock is held; all of them or, on a full disk, none.

    A process that is killed meanwhile leaves at most one torn line, which the next writer cuts off.
    """
    handle = os.open(table, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        start = _end_of_lines(handle)
        os.ftruncate(handle, start)
        try:
            while data:  # a full disk takes a part first, and fails at the next attempt
                data = data[os.write(handle, data) :]
        except OSError as error:
            os.ftruncate(handle, start)
            raise OSError(error.errno, f"{error.strerror}; no row was added", str(table)) from error
    finally:
        os.close(handle)


def _end_of_lines(handle: int, block: int = 1 << 16) -> int:
    """Return the size of a file up to its last line break; only its last block is read where a line break is in it."""
    end = os.fstat(handle).st_size
    while end:
        start = max(0, end - block)
        if (place := os.pread(handle, end - start, start).rfind(b"\n")) >= 0:
            return start + place + 1
        end = start
    return 0


def _parse(line: bytes, table: Path, number: int) -> Row:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{table}, line {number}: not JSON; is this a results table?") from error
    if not isinstance(values, dict) or "metric" not in values:
        raise UserError(f"{table}, line {number}: not a row of results (no 'metric' column)")
    foreign = sorted(set(values) - set(COLUMNS))
    if foreign:
        shown = ", ".join(name[:LONGEST_WORD] for name in foreign[:5])
        raise UserError(f"{table}, line {number}: unknown columns {shown}; is this a results table of ours?")
    for name, value in values.items():
        kind = _KINDS[name]
        if (value is None and name in _REQUIRED) or (value is not None and not _fits(kind, value)):
            raise UserError(f"{table}, line {number}: {name} {short_repr(value)} is not {_KIND_NAMES[kind]}")
    metric = values["metric"]
    for old, new in _RENAMED.items():
        if metric.endswith(old):
            values["metric"] = metric.removesuffix(old) + new
    return Row(**values)


def _fits(kind: type, value: object) -> bool:
    """Return whether a value of JSON may stand in a column of strings, whole numbers or finite numbers."""
    if isinstance(value, str):
        return kind is str and not any("\ud800" <= letter <= "\udfff" for letter in value)  # no UTF-8 could hold these
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return kind is not str and (kind is float or isinstance(value, int)) and abs(value) <= _LARGEST[kind]


@contextlib.contextmanager
def _locked(table: Path) -> Iterator[None]:
    with open(table.with_name(f".{table.name}.lock"), "a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)
