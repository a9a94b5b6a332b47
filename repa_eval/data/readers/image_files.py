"""Images in files: a folder (nested or flat), a zip of images, or an npz with `arr_0` (N, H, W, C)."""

from __future__ import annotations

import functools
import hashlib
import os
import zipfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from repa_eval.data.readers import decode
from repa_eval.data.readers.arrays import array_names, is_zip
from repa_eval.data.readers.listing import SUFFIXES, list_folder, list_zip, printable
from repa_eval.data.readers.npz import StreamedImages
from repa_eval.data.readers.opened import PerProcess
from repa_eval.data.readers.pictures import PREPARE, Pictures
from repa_eval.errors import UserError, first_line, parsing

OURS = "samples.json"  # lies in a folder of our samples, whose file names are indices
RESIZE = ", or add --resize N"  # what fid and stats do about images of different sizes


class ImageFiles(Pictures):
    """A folder or zip of images of one size, sorted by path; a folder per class gives the labels.

    Names are listed when it is opened; headers are read when an image is asked for or `survey` is called. For resize
    and advice see `Pictures.begin`.
    """

    split, split_known = "all", False

    def __init__(self, path: Path, *, resize: int | None = None, advice: str = PREPARE) -> None:
        self.name, self.path = printable(path), path
        self._zip = PerProcess(functools.partial(_open_zip, path)) if path.is_file() else None
        self._infos: dict[str, zipfile.ZipInfo] = {}  # of a zip, by the names in `members`
        if self._zip is None:
            listing = list_folder(path)
        else:
            listing, self._infos = list_zip(self.name, self._zip())
        listing.announce(self.name)
        self.members = listing.members
        if not self.members:
            there = f"; there are {listing.notes()}" if listing.left_out else ""
            raise UserError(f"{self.name}: no images (looked for {', '.join(sorted(SUFFIXES))}){there}")
        _refuse_equal_places(self.name, self.members, ours=self._zip is None and (path / OURS).is_file())
        self.begin(np.array(list(listing.sizes.values()), dtype=np.int64), resize=resize, advice=advice)
        parents = [Path(member).parent.as_posix() for member in self.members]
        classes = sorted(set(parents))
        self.class_names = tuple(map(printable, classes))
        self.num_classes = len(classes)
        places = {name: place for place, name in enumerate(classes)}
        self.labels = np.array([places[parent] for parent in parents])

    def _called(self, index: int) -> str:
        return printable(self.members[index])

    def digest(self) -> str:
        """Return a hash of the files' names and bytes, and of the resizing if there is any."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        content = hashlib.sha256()
        for index, member in enumerate(self.members):
            content.update(member.encode("utf-8", "surrogateescape"))
            content.update(self._read(index))
        if self.resize is not None:
            content.update(f"resized {self.resize}".encode())
        return content.hexdigest()[:12]

    def _read(self, index: int, most: int = decode.MAX_BYTES) -> bytes:
        """Return the first bytes of a file; Unusable where it cannot be read or is larger than any image."""
        member = self.members[index]
        if self._sizes[index] > decode.MAX_BYTES:
            raise decode.Unusable(f"takes {self._sizes[index]:,} bytes, more than an image that can be used")
        try:
            if self._zip is not None:
                with self._zip().open(self._infos[member]) as packed:
                    return packed.read(most)
            with open(self.path / member, "rb") as handle:
                return handle.read(most)
        except Exception as error:  # zipfile raises whatever its decompressors do
            raise decode.Unusable(f"is not a readable image ({first_line(error)})", damaged=True) from error


def open_images(
    path: str | Path, *, resize: int | None = None, lazy: bool = False, advice: str = RESIZE
) -> ImageFiles | StreamedImages:
    """Return the images at a path: a folder, a zip of images or an npz with `arr_0`; UserError if it is none of these.

    What a file is, is seen by its content: an npz is a zip of arrays. lazy: the headers of image files are not read yet
    (see `ImageFiles`). advice: what to do about images of different sizes, for that error.
    """
    path = Path(path)
    if not os.path.exists(path):  # also for what is no path at all
        raise UserError(f"{printable(path)} does not exist: expected a folder of images, a .zip or a .npz")
    suffix = path.suffix.lower()
    if not path.is_dir():
        if not path.is_file() or not (suffix in (".zip", ".npz") or is_zip(path)):
            raise UserError(f"{printable(path)}: expected a folder of images, a .zip or a .npz")
        names = array_names(path) if suffix == ".npz" or is_zip(path) else []
        if suffix == ".npz" or "arr_0" in names:
            return StreamedImages(path, resize=resize)
    images = ImageFiles(path, resize=resize, advice=advice)
    if not lazy:
        images.survey(range(len(images)))
    return images


def _open_zip(path: Path) -> zipfile.ZipFile:
    with parsing(f"{printable(path)} cannot be read"):
        return zipfile.ZipFile(path)


def _refuse_equal_places(name: str, members: Sequence[str], *, ours: bool) -> None:
    """UserError where two files are the same image by their names: 7.png and 007.png, or a.png and a.jpg."""
    seen: dict[tuple[str, str], str] = {}
    for member in members:
        path = PurePosixPath(member)
        number = path.stem.isascii() and path.stem.isdecimal()
        stem = (path.stem.lstrip("0") or "0") if number else path.stem
        key = ("" if ours and number else path.parent.as_posix(), stem)
        if key in seen:
            first, second = printable(seen[key]), printable(member)
            raise UserError(f"{name}: {first} and {second} both are image {printable(stem)}; remove one of them")
        seen[key] = member
