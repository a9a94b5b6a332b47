"""run.json, which makes a folder a run, with the copy that is read where it is lost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from repa_eval.errors import Failure
from repa_eval.runtime.files import read_json, write_atomic
from repa_eval.runtime.run_lock import holder_of

RUN = "run.json"
COPY = ".run.json.bak"
RUNNING, STOPPED, FAILED = "running", "stopped", "failed"


def write_record(run: Path, record: Mapping[str, Any]) -> None:
    """Write run.json, and its copy."""
    content = json.dumps(record, indent=1) + "\n"
    write_atomic(run / RUN, content)
    write_atomic(run / COPY, content)


def read_record(run: Path) -> dict[str, Any] | None:
    """Return run.json, or its copy where it is missing or damaged; None if there is neither.

    Failure if what there is is damaged.
    """
    damage: Failure | None = None
    for file in (run / RUN, run / COPY):
        if not file.is_file():
            continue
        try:
            record = read_json(file)
        except Failure as error:
            damage = damage or error
            continue
        if isinstance(record, dict):
            return record
        damage = damage or Failure(f"{file} is damaged: expected an object")
    if damage is not None:
        raise damage
    return None


def status_of(run: Path, record: Mapping[str, Any] | None = None) -> str | None:
    """Return the status in run.json; "stopped" where it says "running" and nobody writes the run.

    A trainer that was killed could not write how it ended. record: the content of run.json, read before.
    """
    record = record or read_record(run) or {}
    if record.get("status") == RUNNING and holder_of(run) is None:
        record = read_record(run) or {}  # it may have ended between the two looks
        if record.get("status") == RUNNING:
            return STOPPED
    return None if record.get("status") is None else str(record["status"])
