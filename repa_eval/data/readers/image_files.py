"""Images in files: a folder (nested or flat), a zip of images, or an npz with `arr_0` (N, H, W, C).

All headers are looked at when a folder is opened, so that what cannot be used is known, and counted, before hours of
computing. Memory is bounded by what is read and decoded at once, whatever a file declares.
"""

from __future__ import annotations

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
from repa_eval.interfaces.image_source import DEFAULT_KINDS, Array, ImageSource, Samples, chunks, refuse_large_batch

OURS = "samples.json"  # lies in a folder of our samples, whose file names are indices
THREADS = min(8, os.cpu_count() or 1)
AT_ONCE = 1 << 28  # bytes of encoded or decoded images that all threads together hold
PER_PIXEL = 8  # bytes that decoding takes at most: RGBA, and a copy of it

T = TypeVar("T")


class ImageFiles(ImageSource):
    """A folder or zip of images of one size, sorted by path; a folder per class gives the labels.

    resize: every image is cropped and resized to this side (see `centre_crop`); None: all must have one size.
    """

    split, split_known = "all", False

    def __init__(self, path: Path, *, resize: int | None = None) -> None:
        self.name, self.path, self.resize = printable(path), path, resize
        self._zip = PerProcess(functools.partial(_open_zip, path)) if path.is_file() else None
        self._infos: dict[str, zipfile.ZipInfo] = {}  # of a zip, by the names in `members`
        if self._zip is None:
            listing = list_folder(path)
        else:
            listing, self._infos = list_zip(self.name, self._zip())
        listing.announce(self.name)
        self.members, self._sizes = listing.members, list(listing.sizes.values())
        if not self.members:
            there = f"; there are {listing.notes()}" if listing.left_out else ""
            raise UserError(f"{self.name}: no images (looked for {', '.join(sorted(SUFFIXES))}){there}")
        _refuse_equal_places(self.name, self.members, ours=self._zip is None and (path / OURS).is_file())
        self.grey, self.image_shape, self._most_pixels = self._survey()
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
                raise self._refusal(index, result, self._count_unusable())
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

    @property
    def _bytes_of_one(self) -> int:
        """The most that one image takes while it is decoded."""
        return max(self._sizes) + PER_PIXEL * self._most_pixels

    def _survey(self) -> tuple[bool, tuple[int, int, int], int]:
        """Return whether all images are grey, (C, H, W), and the pixels of the largest file.

        UserError or Failure that counts what is wrong.
        """
        results = self._each(self._header, range(len(self)), max(self._sizes))
        headers = [head for head in results if isinstance(head, decode.Header)]
        if len(headers) < len(results):
            index = next(i for i, head in enumerate(results) if not isinstance(head, decode.Header))
            why = results[index]
            assert isinstance(why, decode.Unusable)
            raise self._refusal(index, why, len(results) - len(headers))
        sizes = [(head.height, head.width) for head in headers]
        odd = [index for index, size in enumerate(sizes) if size != sizes[0]]
        if odd and self.resize is None:
            first, other = (f"{size[1]}x{size[0]}" for size in (sizes[0], sizes[odd[0]]))
            name = printable(self.members[odd[0]])
            raise UserError(
                f"{self.name}: images of different sizes; {name} is not like the first ({other}, not {first}; "
                f"{len(odd)} of {len(self)} differ): make them equal, or add --resize N"
            )
        grey = all(head.grey for head in headers)
        height, width = sizes[0] if self.resize is None else (self.resize, self.resize)
        return grey, (1 if grey else 3, height, width), max(high * wide for high, wide in sizes)

    def _refusal(self, index: int, why: decode.Unusable, count: int) -> UserError:
        """Return the error for an image; count: how many of all images cannot be used."""
        many = f"; {count} of {len(self)} images cannot be used" if len(self) > 1 else ""
        kind = Failure if why.damaged else UserError
        return kind(f"{self.name}: {printable(self.members[index])} {why}{many}")

    def _count_unusable(self) -> int:
        """Return how many images cannot be decoded, looking at a few of them at a time."""

        def is_unusable(index: int) -> bool:
            return isinstance(self._pixels(index), decode.Unusable)

        return sum(sum(self._each(is_unusable, rows, self._bytes_of_one)) for rows in chunks(len(self), 8 * THREADS))

    def _each(self, function: Callable[[int], T], indices: Sequence[int], bytes_each: int) -> list[T]:
        """Return the function's results, by as many threads as AT_ONCE allows if each holds `bytes_each`."""
        threads = min(THREADS, AT_ONCE // max(bytes_each, 1))
        if len(indices) < THREADS or threads <= 1:
            with decode.quiet():
                return [function(index) for index in indices]
        with decode.quiet(), ThreadPoolExecutor(threads) as pool:
            return list(pool.map(function, indices, chunksize=8))

    def _header(self, index: int) -> decode.Header | decode.Unusable:
        try:
            return decode.header(self._read(index))
        except decode.Unusable as why:
            return why.alone()

    def _pixels(self, index: int) -> Array | decode.Unusable:
        try:
            return decode.pixels(self._read(index), grey=self.grey, side=self.resize)
        except decode.Unusable as why:
            return why.alone()

    def _read(self, index: int) -> bytes:
        """Return the bytes of a file; Unusable where it cannot be read or is larger than any image."""
        member = self.members[index]
        if self._sizes[index] > decode.MAX_BYTES:
            raise decode.Unusable(f"takes {self._sizes[index]:,} bytes, more than an image that can be used")
        try:
            if self._zip is not None:
                return self._zip().read(self._infos[member])
            with open(self.path / member, "rb") as handle:
                return handle.read(decode.MAX_BYTES)
        except Exception as error:  # zipfile raises whatever its decompressors do
            raise decode.Unusable(f"is not a readable image ({first_line(error)})", damaged=True) from error


def open_images(path: str | Path, *, resize: int | None = None) -> ImageFiles | StreamedImages:
    """Return the images at a path: a folder, a zip of images or an npz with `arr_0`; UserError if it is none of these.

    What a file is, is seen by its content: an npz is a zip of arrays.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{printable(path)} does not exist: expected a folder of images, a .zip or a .npz")
    if path.is_dir():
        return ImageFiles(path, resize=resize)
    suffix = path.suffix.lower()
    if not path.is_file() or not (suffix in (".zip", ".npz") or is_zip(path)):
        raise UserError(f"{printable(path)}: expected a folder of images, a .zip or a .npz")
    names = array_names(path) if suffix == ".npz" or is_zip(path) else []
    if suffix == ".npz" or "arr_0" in names:
        return StreamedImages(path, resize=resize)
    return ImageFiles(path, resize=resize)


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
