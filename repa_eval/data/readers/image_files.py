"""Images in files: a folder (nested or flat), a zip of images, or an npz with `arr_0` (N, H, W, C).

The headers of the images that are used are looked at before any of them is decoded, so that what cannot be used is
known, and counted, before hours of computing. Memory is bounded by what is read and decoded at once, whatever a file
declares.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import zipfile
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np
import torch

from repa_eval.data.readers import decode
from repa_eval.data.readers.arrays import array_names, is_zip
from repa_eval.data.readers.listing import SUFFIXES, list_folder, list_zip, printable
from repa_eval.data.readers.npz import StreamedImages
from repa_eval.data.readers.opened import PerProcess
from repa_eval.errors import Failure, UserError, first_line, parsing
from repa_eval.interfaces.image_source import (
    DEFAULT_KINDS,
    Array,
    ImageSource,
    Samples,
    Shape,
    chunks,
    refuse_large_batch,
)

OURS = "samples.json"  # lies in a folder of our samples, whose file names are indices
THREADS = min(8, os.cpu_count() or 1)
AT_ONCE = 1 << 28  # bytes of encoded or decoded images that all threads together hold
PER_PIXEL = 8  # bytes that decoding takes at most: RGBA, and a copy of it
RESIZE = ", or add --resize N"  # what to do about images of different sizes: fid and stats, and elsewhere
PREPARE = " with `repa-eval prepare SRC DEST --resolution N`; align, probe and sweep take --resolution N themselves"
HEAD = 1 << 14  # bytes of a file in which its header usually ends

T = TypeVar("T")


class ImageFiles(ImageSource):
    """A folder or zip of images of one size, sorted by path; a folder per class gives the labels.

    Names are listed when it is opened; headers are read when an image is asked for or `survey` is called. Images are
    grey if all of them are, else RGB: the headers are read up to the first one that has colours.
    resize: every image is cropped and resized to this side (see `centre_crop`); None: all must have one size. advice:
    what to do about images of different sizes, for that error.
    """

    split, split_known = "all", False

    def __init__(self, path: Path, *, resize: int | None = None, advice: str = PREPARE) -> None:
        self.name, self.path, self.resize, self._advice = printable(path), path, resize, advice
        self._zip = PerProcess(functools.partial(_open_zip, path)) if path.is_file() else None
        self._infos: dict[str, zipfile.ZipInfo] = {}  # of a zip, by the names in `members`
        if self._zip is None:
            listing = list_folder(path)
        else:
            listing, self._infos = list_zip(self.name, self._zip())
        listing.announce(self.name)
        self.members, self._sizes = listing.members, np.array(list(listing.sizes.values()), dtype=np.int64)
        if not self.members:
            there = f"; there are {listing.notes()}" if listing.left_out else ""
            raise UserError(f"{self.name}: no images (looked for {', '.join(sorted(SUFFIXES))}){there}")
        _refuse_equal_places(self.name, self.members, ours=self._zip is None and (path / OURS).is_file())
        self._sides = np.zeros((len(self.members), 2), dtype=np.int32)  # height, width; 0 where no header was read yet
        self._coloured = np.zeros(len(self.members), dtype=bool)
        parents = [Path(member).parent.as_posix() for member in self.members]
        classes = sorted(set(parents))
        self.class_names = tuple(map(printable, classes))
        self.num_classes = len(classes)
        places = {name: place for place, name in enumerate(classes)}
        self.labels = np.array([places[parent] for parent in parents])

    def __len__(self) -> int:
        return len(self.members)

    def fetch(self, indices: Sequence[int], kinds: Collection[str] = DEFAULT_KINDS) -> Samples:
        """Return images and labels at `indices`."""
        labels = torch.from_numpy(self.labels[list(indices)])
        if "images" not in kinds:
            return Samples(labels=labels)
        return Samples(images=torch.from_numpy(self._decoded(indices)), labels=labels)

    def _decoded(self, indices: Sequence[int]) -> Array:
        """Return the images uint8 (B, C, H, W); each is decoded into its place, so that none is held twice."""
        self.survey(indices)
        refuse_large_batch(self.name, len(indices), self.shape)
        images = np.empty((len(indices), *self.shape), dtype=np.uint8)

        def decode_into(place: int) -> decode.Unusable | None:
            pixels = self._pixels(indices[place])
            if isinstance(pixels, decode.Unusable):
                return pixels
            images[place] = pixels.transpose(2, 0, 1)
            return None

        results = self._each(decode_into, range(len(indices)), self._bytes_of_one)
        for index, result in zip(indices, results, strict=True):
            if result is not None:
                raise self._refusal(index, result, *self._count_unusable())
        return images

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

    @cached_property
    def grey(self) -> bool:
        """Whether all images are grey; one that cannot be read says nothing."""
        if not self._sides[0, 0]:
            self._headers([0])
        unread = np.flatnonzero(self._sides[:, 0] == 0).tolist()
        for rows in chunks(len(unread), 8 * THREADS):
            if self._coloured.any():
                break
            self._headers(unread[rows.start : rows.stop])
        return not self._coloured.any()

    @cached_property
    def image_shape(self) -> Shape:  # type: ignore[override]
        """(C, H, W) of every image, by the first; UserError or Failure where that one cannot be used."""
        if self.resize is not None:
            height = width = self.resize
        else:
            self.survey([0])
            height, width = map(int, self._sides[0])
        return 1 if self.grey else 3, height, width

    def survey(self, rows: Sequence[int]) -> None:
        """Read the headers of the images at `rows`; UserError or Failure that counts what is wrong with them."""
        places = np.unique(np.asarray(rows, dtype=np.int64))
        new = places[self._sides[places, 0] == 0].tolist()
        heads = zip(new, self._headers(new), strict=True)
        unusable = [(row, head) for row, head in heads if isinstance(head, decode.Unusable)]
        if unusable:
            raise self._refusal(*unusable[0], len(unusable), len(places))
        if self.resize is None:
            if 0 not in places:
                self.survey([0])
            self._refuse_other_sizes(places)

    def _refuse_other_sizes(self, places: Array) -> None:
        """UserError where images at `places` do not have the size of the first image of all."""
        odd = places[(self._sides[places] != self._sides[0]).any(axis=1)]
        if len(odd):
            first, other = (f"{width}x{height}" for height, width in (self._sides[0], self._sides[odd[0]]))
            raise UserError(
                f"{self.name}: images of different sizes; {printable(self.members[odd[0]])} is not like the first "
                f"({other}, not {first}; {len(odd)} of {len(places)} differ): make them equal{self._advice}"
            )

    @property
    def _bytes_of_one(self) -> int:
        """The most that one of the images takes, whose header is known, while it is decoded."""
        largest = self._sides.astype(np.int64).prod(axis=1).max()
        return int(self._sizes[self._sides[:, 0] > 0].max() + PER_PIXEL * largest)

    def _refusal(self, index: int, why: decode.Unusable, count: int, total: int) -> UserError:
        """Return the error for an image; count: how many of `total` images cannot be used."""
        many = f"; {count} of {total} images cannot be used" if total > 1 else ""
        kind = Failure if why.damaged else UserError
        return kind(f"{self.name}: {printable(self.members[index])} {why}{many}")

    def _count_unusable(self) -> tuple[int, int]:
        """Return how many images cannot be decoded, looking at a few of them at a time, and of how many.

        Only those are counted whose header was asked for.
        """

        def is_unusable(index: int) -> bool:
            return isinstance(self._pixels(index), decode.Unusable)

        used = np.flatnonzero(self._sides[:, 0]).tolist()
        parts = (used[rows.start : rows.stop] for rows in chunks(len(used), 8 * THREADS))
        return sum(sum(self._each(is_unusable, rows, self._bytes_of_one)) for rows in parts), len(used)

    def _headers(self, rows: Sequence[int]) -> list[decode.Header | decode.Unusable]:
        """Return what the headers at `rows` say, and remember it."""
        found = self._each(self._header, rows, int(self._sizes[list(rows)].max(initial=1)))
        for row, head in zip(rows, found, strict=True):
            if isinstance(head, decode.Header):
                self._sides[row], self._coloured[row] = (head.height, head.width), not head.grey
        return found

    def _each(self, function: Callable[[int], T], indices: Sequence[int], bytes_each: int) -> list[T]:
        """Return the function's results, by as many threads as AT_ONCE allows if each holds `bytes_each`."""
        threads = min(THREADS, AT_ONCE // max(bytes_each, 1))
        if len(indices) < THREADS or threads <= 1:
            with decode.quiet():
                return [function(index) for index in indices]
        with decode.quiet(), ThreadPoolExecutor(threads) as pool:
            return list(pool.map(function, indices, chunksize=8))

    def _header(self, index: int) -> decode.Header | decode.Unusable:
        """Return what the first bytes of a file say; the whole of it is read only where these are not enough."""
        size = int(self._sizes[index])
        try:
            data = self._read(index, HEAD)
            if len(data) < size:
                with contextlib.suppress(decode.Unusable):
                    return decode.header(data, size)
                data = self._read(index)
            return decode.header(data)
        except decode.Unusable as why:
            return why.alone()

    def _pixels(self, index: int) -> Array | decode.Unusable:
        try:
            return decode.pixels(self._read(index), grey=self.grey, side=self.resize)
        except decode.Unusable as why:
            return why.alone()

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
