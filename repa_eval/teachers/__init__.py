"""Frozen encoders by name: `load(name)`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from repa_eval.interfaces.teacher import Teacher


def load(name: str | Path, weights: str | Path | None = None) -> Teacher:
    """Return the frozen teacher `name`: one of `repa-eval list teachers`, timm:NAME, or a file that holds an encoder.

    weights: a file that replaces the teacher's own. UserError for an unknown name or a file that does not exist.
    """
    from repa_eval.interfaces.teacher import load_teacher

    return load_teacher(str(name), weights)
