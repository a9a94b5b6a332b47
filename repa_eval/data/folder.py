"""`folder:PATH`: images in a folder, a zip or an npz, read batch by batch."""

from __future__ import annotations

from pathlib import Path

from repa_eval.data.readers.image_files import open_images
from repa_eval.data.readers.listing import printable
from repa_eval.data.readers.npz import StreamedImages
from repa_eval.data.readers.pictures import PREPARE
from repa_eval.interfaces.image_source import ImageSource, Subset
from repa_eval.interfaces.images import data


def is_image_files(path: Path) -> bool:
    """Return whether images may lie at a path: in a folder, a zip or an npz."""
    return path.is_dir() or path.suffix.lower() in (".zip", ".npz")


@data("folder", recognises=is_image_files, general=True, resizes=True)
def load(rest: str, split: str, *, resolution: int | None = None) -> ImageSource:
    """Return the images at `folder:PATH`, read batch by batch; it has no splits: every split is all of its images."""
    source = open_images(rest, resize=resolution, lazy=True, advice=PREPARE)
    if isinstance(source, StreamedImages):
        return source
    return Subset(source, range(len(source)), name=f"folder:{printable(rest)}")
