"""The file of --plot: its format, asked before anything is measured."""

from __future__ import annotations

from pathlib import Path

from repa_eval.errors import UserError

FORMATS = ("png", "svg", "pdf")


def kind_of(file: Path) -> str:
    """Return the format that a file's name asks for; UserError if it is none of ours."""
    kind = file.suffix.lstrip(".").lower()
    if kind not in FORMATS:
        raise UserError(f"--plot {file}: choose a file that ends in {', '.join(FORMATS)}")
    return kind
