"""Pictures that a monitor writes for the report."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from repa_eval.interfaces.monitor import Monitor
from repa_eval.monitors.shared.run import EvaluatedRun
from repa_eval.results import Row
from repa_eval.runtime.files import write_atomic


class PictureMonitor(Monitor):
    """A monitor that returns no rows and writes RUN/media/<kind>-<step>.png."""

    kind: str

    def __init__(self, run: EvaluatedRun) -> None:
        self.run = run

    def file(self, step: int) -> Path:
        """Return the picture of a step."""
        return self.run.picture(self.kind, step)

    def done(self, step: int, rows: Collection[Row]) -> bool:
        """Return whether the picture exists."""
        return self.file(step).is_file()


def write_grid(path: Path, png: bytes, words: dict[str, Any]) -> None:
    """Write a picture of rows and columns, and their titles to the .json of the same name.

    The picture is written last: once it exists, both files are complete.
    """
    write_atomic(path.with_suffix(".json"), json.dumps(words, indent=1) + "\n")
    write_atomic(path, png)
