"""`folder:PATH`: images in a folder, a zip or an npz, read batch by batch."""

from __future__ import annotations

from pathlib import Path

from repa_eval.data.readers.dataset_json import has_labels
from repa_eval.data.readers.image_files import open_images
from repa_eval.data.readers.image_members import ImageMembers
from repa_eval.data.readers.listing import SUFFIXES, printable
from repa_eval.data.readers.npz import StreamedImages
from repa_eval.data.readers.pictures import PREPARE
from repa_eval.data.readers.repa_layout import files_of, halves, is_repa, labels_of
from repa_eval.interfaces.image_source import ImageSource, Subset
from repa_eval.interfaces.images import data


def is_image_files(path: Path) -> bool:
    """Return whether images may lie at a path: in a folder, a zip or an npz."""
    return path.is_dir() or path.suffix.lower() in (".zip", ".npz")


@data("folder", recognises=is_image_files, general=True, resizes=True)
def load(rest: str, split: str, *, resolution: int | None = None) -> ImageSource:
    """Return the images at `folder:PATH`, read batch by batch; it has no splits: every split is all of its images.

    A folder per class gives the labels, or a dataset.json, where the folders are numbers of REPA's tool.
    """
    if (labelled := _labelled(Path(rest), resolution)) is not None:
        return Subset(labelled, range(len(labelled)), name=f"folder:{printable(rest)}")
    source = open_images(rest, resize=resolution, lazy=True, advice=PREPARE)
    if isinstance(source, StreamedImages):
        return source
    return Subset(source, range(len(source)), name=f"folder:{printable(rest)}")


def _labelled(path: Path, resolution: int | None) -> ImageMembers | None:
    """Return the images of REPA's layout, whose classes a dataset.json says; None for images of folders."""
    images = halves(path)[0] if is_repa(path) else None
    if images is None or not has_labels(images):
        return None
    files = files_of(images, SUFFIXES)
    return ImageMembers(images, files, labels_of(images, files, path), resize=resolution)
