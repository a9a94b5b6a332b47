"""Pictures that a monitor writes for the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from repa_eval.runtime.files import write_atomic


def write_grid(path: Path, png: bytes, words: dict[str, Any]) -> None:
    """Write a picture that is a table, after the words beside it: what is `done` is complete."""
    write_atomic(path.with_suffix(".json"), json.dumps(words, indent=1) + "\n")
    write_atomic(path, png)
