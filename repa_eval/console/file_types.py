"""Types of options that name files to write."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click


class PngFile(click.Path):
    """A file that will be a PNG: a name of another format is refused, as its content would not be of that format."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path; a usage error unless it ends in .png."""
        file = Path(os.fsdecode(super().convert(value, param, ctx)))
        if file.suffix.lower() != ".png":
            self.fail(f"{file}: the picture is a PNG; choose a name that ends in .png", param, ctx)
        return file
