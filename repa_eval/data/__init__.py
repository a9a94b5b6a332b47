"""Data sets by name or path: `load(name, split)`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from repa_eval.interfaces.image_source import ImageSource


def load(name: str | Path, split: str = "train", *, resolution: int | None = None) -> ImageSource:
    """Return a split of a data set: "digits", "hf:NAME" and others of `repa-eval list data`, or a path.

    What lies at a path is recognised; KIND:PATH forces the layout. No pixels are read before samples are fetched.
    resolution: the side in pixels to which images are then cropped and resized, as ADM does.
    """
    from repa_eval.interfaces.images import load_data

    return load_data(str(name), split, resolution=resolution)
