"""What `repa-eval verify` looks for in a run folder: every file that a run writes, read as its readers do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from repa_eval import results
from repa_eval.errors import UserError, parsing, reason_of
from repa_eval.results import Row
from repa_eval.runtime.files import read_json, read_object

STATUSES = ("running", "done", "interrupted", "failed")


def faults_of(run: Path) -> tuple[dict[str, int], list[str]]:
    """Return how much of a run folder was checked, and a line of text for every fault.

    UserError if the folder holds no run.
    """
    parts = ("checkpoints", results.TABLE, results.CURVES, results.RUN)
    if not any((run / part).exists() for part in parts):
        raise UserError(f"{run} is no run folder: it holds none of {', '.join(parts)}")
    rows: list[Row] = []
    faults: list[str] = []
    for name in (results.TABLE, results.CURVES):
        if (run / name).is_file():
            found, wrong = results.check(run / name)
            rows += found
            faults += wrong
    media = sorted(path for path in (run / "media").glob("*") if not path.name.startswith(".") and path.is_file())
    files = sorted((run / "checkpoints").glob("*.pt"))
    faults += [*_protocols(run, rows), *_records(run), *_readable(media, _check_media)]
    faults += _readable(files, _check_checkpoint)
    return {"checkpoints": len(files), "rows": len(rows), "media": len(media)}, faults


def _readable(files: Iterable[Path], check: Callable[[Path], None]) -> Iterator[str]:
    """Yield why files cannot be read."""
    for file in files:
        try:
            check(file)
        except (UserError, OSError) as error:
            yield reason_of(error)


def _check_checkpoint(file: Path) -> None:
    """Raise UserError for a checkpoint that training could not go on from: its checksums are wrong, ..."""
    from repa_eval.train.state import load_good_checkpoint

    load_good_checkpoint(file)


def _check_media(file: Path) -> None:
    from PIL import Image

    if file.suffix == ".json":
        read_json(file)
    elif file.suffix == ".png":
        with parsing(f"{file} is damaged"), Image.open(file, formats=["PNG"]) as image:
            image.verify()


def _records(run: Path) -> Iterator[str]:
    """Yield the faults of run.json and recipe.yaml."""
    from repa_eval.train.state import read_recipe

    try:
        record = read_object(run / results.RUN)
        if not isinstance(record.get("run"), str):
            yield f"{run / results.RUN}: it names no run"
        if record.get("status") not in STATUSES and "origin" not in record:  # of another trainer nobody knows it
            yield f"{run / results.RUN}: its status is none of {', '.join(STATUSES)}"
    except FileNotFoundError:
        yield f"{run / results.RUN} is missing; `repa-train --resume` writes it anew"
    except (UserError, OSError) as error:
        yield reason_of(error)
    try:
        read_recipe(run)
    except (UserError, OSError) as error:
        yield reason_of(error)


def _protocols(run: Path, rows: Iterable[Row]) -> Iterator[str]:
    """Yield the records whose hash is another one, and the hashes of rows that have no record."""
    file = run / results.PROTOCOLS
    try:
        records = results.read_protocols(run)
    except (UserError, OSError) as error:
        yield reason_of(error)
        return
    for digest, record in records.items():
        if (actual := results.protocol_hash(record)) != digest:
            yield f"{file}: the record {digest} has the hash {actual}, so it was changed"
    counts: dict[str, int] = {}
    for row in rows:
        if row.protocol is not None and row.protocol not in records:
            counts[row.protocol] = counts.get(row.protocol, 0) + 1
    for digest, count in counts.items():
        yield f"{file}: the record {digest} is missing, which {count} rows name"
