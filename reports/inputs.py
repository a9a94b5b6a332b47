"""What a report needs, read from run folders. All reading from disk happens here; rendering is pure."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from repa_eval import results
from repa_eval.errors import Failure, UserError, first_line, valid_text
from repa_eval.reports.numbers.arms import BASELINE, of_a_run
from repa_eval.reports.numbers.sample_sets import along_training
from repa_eval.results import Row
from repa_eval.runtime.files import LARGEST_JSON
from repa_eval.runtime.run_record import read_record, status_of

log = logging.getLogger(__name__)
ROWS_ONLY = "another program; only rows are here"  # of a folder that no trainer of ours wrote
LARGEST_MEDIA = {".png": 1 << 26, ".json": LARGEST_JSON}  # bytes of a picture and of what is said about it


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The arguments of render(); `render(**inputs.arguments())` makes the report."""

    rows: Sequence[Row]
    curves: Sequence[Row] = ()
    media: Mapping[str, bytes] = field(default_factory=dict)
    protocols: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    runs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """Return the fields as keyword arguments of render()."""
        return dict(vars(self))


def collect(run_dirs: Sequence[str | Path], *, baseline: str | Path | None = None) -> Inputs:
    """Return what run folders hold for a report.

    baseline: the name or the folder of the run that the others are compared with; a folder is read too. None: the run
    of the method vanilla, if there is one.
    UserError, one line, for a path that is no run folder, for a table that is empty or not ours, for two different
    folders whose runs have one name, and for a baseline that is none of the runs.
    """
    if baseline is not None and (Path(baseline) / results.TABLE).is_file():
        run_dirs = [*run_dirs, baseline]
    folders = list(dict.fromkeys(Path(path).resolve() for path in run_dirs))
    if not folders:
        raise UserError("no run given: expected one run folder or more, e.g. runs/digits-repa")
    names: dict[str, Path] = {}
    rows: list[Row] = []
    curves: list[Row] = []
    media: dict[str, bytes] = {}
    protocols: dict[str, Mapping[str, Any]] = {}
    runs: dict[str, Mapping[str, Any]] = {}
    for folder in folders:
        table = _table(folder)
        facts = _facts(folder)
        name = _name(facts, folder)
        if name in names:
            raise UserError(
                f"two runs are called {name!r}: {names[name]} and {folder}; rename one in its {results.RUN}"
            )
        names[name] = folder
        rows += [_owned(row, name) for row in table]
        curves += [_owned(row, name) for row in _curves(folder)]
        protocols |= results.read_protocols(folder)
        runs[name] = {key: value for key, value in facts.items() if key != BASELINE}
        media |= {f"{name}/{file.name}": file.read_bytes() for file in _media(folder)}
    if baseline is not None:
        chosen = _named(baseline, names)
        runs[chosen] = {**runs[chosen], BASELINE: True}
    rows, protocols = along_training(results.merge([rows]), protocols)
    return Inputs(rows=rows, curves=results.merge([curves]), media=media, protocols=protocols, runs=runs)


def _named(run: str | Path, names: Mapping[str, Path]) -> str:
    """Return the name of the run that is meant by its name or its folder; UserError if there is none."""
    if str(run) in names:
        return str(run)
    name = next((name for name, folder in names.items() if folder == Path(run).resolve()), None)
    if name is None:
        raise UserError(f"--baseline {run} is none of the runs ({', '.join(names)}) and no run folder")
    return name


def _owned(row: Row, run: str) -> Row:
    """Return the row with its run's name; reference levels belong to nobody."""
    return replace(row, run=run) if row.run is None and of_a_run(row) else row


def _table(folder: Path) -> list[Row]:
    if not folder.exists():
        raise UserError(f"{str(folder)!r} does not exist: expected a run folder with {results.TABLE}")
    if not folder.is_dir():
        raise UserError(f"{str(folder)!r} is a file: expected a run folder with {results.TABLE}")
    if not (folder / results.TABLE).is_file():
        inside = sorted(child.name for child in folder.iterdir() if (child / results.TABLE).is_file())
        hint = f"; the run folders inside are {', '.join(inside)}" if inside else ""
        raise UserError(f"{str(folder)!r} is not a run folder: it holds no {results.TABLE}{hint}")
    rows = results.read(folder)
    if not rows:
        raise UserError(f"{folder / results.TABLE} is empty: measure something first, e.g. repa-eval sweep {folder}")
    return rows


def _curves(folder: Path) -> list[Row]:
    file = folder / results.CURVES
    return results.read(file) if file.is_file() else []


def _facts(folder: Path) -> dict[str, Any]:
    """Return what run.json says of the run; nothing, with a warning, where it is lost or damaged.

    A run that was killed, so that nobody writes it although it says "running", has the status "stopped".
    """
    try:
        facts = read_record(folder) or ({} if (folder / "checkpoints").is_dir() else {"origin": ROWS_ONLY})
        return {**facts, "status": status_of(folder, facts)} if "status" in facts else facts
    except (Failure, OSError) as error:
        log.warning("%s; the report goes on without it", first_line(error))
        return {}


def _name(facts: Mapping[str, Any], folder: Path) -> str:
    """Return the name of a run: that of run.json, else its folder's, whose bytes may be no UTF-8."""
    recorded = facts.get("run")
    if isinstance(recorded, str) and recorded:
        return recorded
    return valid_text(folder.name)


def _media(folder: Path) -> list[Path]:
    place = folder / "media"
    files = sorted(place.iterdir()) if place.is_dir() else []
    shown = [
        file for file in files if file.is_file() and not file.name.startswith(".") and file.suffix in LARGEST_MEDIA
    ]
    for file in shown:
        if file.stat().st_size > LARGEST_MEDIA[file.suffix]:
            log.warning("%s has %s bytes and is left out of the report", file, f"{file.stat().st_size:,}")
    return [file for file in shown if file.stat().st_size <= LARGEST_MEDIA[file.suffix]]
