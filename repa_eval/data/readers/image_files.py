"""Images in files: a folder (nested or flat), a zip of images, or an npz with `arr_0` (N, H, W, C).

All headers are looked at when a folder is opened, so that what cannot be used is known, and counted, before hours of
computing.
"""

from __future__ import annotations

import functools
import hashlib
import os
import zipfile
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
import torch

from repa_eval.data.readers import decode
from repa_eval.data.readers.npz import StreamedImages
from repa_eval.data.readers.opened import PerProcess
from repa_eval.errors import Failure, UserError, first_line
from repa_eval.interfaces.image_source import DEFAULT_KINDS, ImageSource, Samples, chunks

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
OURS = "samples.json"  # lies in a folder of our samples, whose file names are indices
THREADS = min(8, os.cpu_count() or 1)
BOMB_BYTES, BOMB_RATIO = 1 << 25, 100

T = TypeVar("T")


class ImageFiles(ImageSource):
    """A folder or zip of images of one size, sorted by path; a folder per class gives the labels.

    resize: every image is cropped and resized to this side (see `centre_crop`); None: all must have one size.
    """

    split = "all"

    def __init__(self, path: Path, *, resize: int | None = None) -> None:
        self.name, self.path, self.resize = str(path), path, resize
        self._zip = PerProcess(functools.partial(_open_zip, path)) if path.is_file() else None
        self.members = self._list()
        if not self.members:
            raise UserError(f"{path}: no images (looked for {', '.join(sorted(SUFFIXES))})")
        _refuse_equal_places(self.name, self.members, ours=self._zip is None and (path / OURS).is_file())
        self.grey, self.image_shape = self._survey()
        parents = [Path(member).parent.as_posix() for member in self.members]
        self.class_names = tuple(sorted(set(parents)))
        self.num_classes = len(self.class_names)
        places = {name: place for place, name in enumerate(self.class_names)}
        self.labels = np.array([places[parent] for parent in parents])

    def __len__(self) -> int:
        return len(self.members)

    def fetch(self, indices: Sequence[int], kinds: Collection[str] = DEFAULT_KINDS) -> Samples:
        """Return images and labels at `indices`."""
        labels = torch.from_numpy(self.labels[list(indices)])
        if "images" not in kinds:
            return Samples(labels=labels)
        decoded = self._each(self._pixels, indices)
        for index, result in zip(indices, decoded, strict=True):
            if isinstance(result, decode.Unusable):
                raise self._refusal(index, result, self._count_unusable(self._pixels))
        arrays: list[Any] = decoded
        stacked = np.stack(arrays).transpose(0, 3, 1, 2)
        return Samples(images=torch.from_numpy(np.ascontiguousarray(stacked)), labels=labels)

    def digest(self) -> str:
        """Return a hash of the files' names and bytes, and of the resizing if there is any."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        content = hashlib.sha256()
        for member in self.members:
            content.update(member.encode())
            content.update(self._read(member))
        if self.resize is not None:
            content.update(f"resized {self.resize}".encode())
        return content.hexdigest()[:12]

    def _list(self) -> list[str]:
        if self._zip is not None:
            infos = [info for info in self._zip().infolist() if not info.is_dir()]
            _refuse_hostile(self.name, infos)
            names = [info.filename for info in infos]
        else:
            names = [path.relative_to(self.path).as_posix() for path in self.path.rglob("*") if path.is_file()]
        return sorted(name for name in names if Path(name).suffix.lower() in SUFFIXES and Path(name).name[0] != ".")

    def _survey(self) -> tuple[bool, tuple[int, int, int]]:
        """Return whether all images are grey, and (C, H, W); UserError or Failure that counts what is wrong."""
        results = self._each(self._header, range(len(self)))
        headers = [head for head in results if isinstance(head, decode.Header)]
        if len(headers) < len(results):
            index = next(i for i, head in enumerate(results) if not isinstance(head, decode.Header))
            raise self._refusal(index, results[index], len(results) - len(headers))
        sizes = [(head.height, head.width) for head in headers]
        odd = [index for index, size in enumerate(sizes) if size != sizes[0]]
        if odd and self.resize is None:
            first, other = (f"{size[1]}x{size[0]}" for size in (sizes[0], sizes[odd[0]]))
            raise UserError(
                f"{self.name}: images of different sizes; {self.members[odd[0]]} is not like the first ({other}, not "
                f"{first}; {len(odd)} of {len(self)} differ): make them equal, or add --resize N"
            )
        grey = all(head.grey for head in headers)
        height, width = sizes[0] if self.resize is None else (self.resize, self.resize)
        return grey, (1 if grey else 3, height, width)

    def _refusal(self, index: int, why: Any, count: int) -> UserError:
        """Return the error for an image; count: how many of all images cannot be used."""
        many = f"; {count} of {len(self)} images cannot be used" if len(self) > 1 else ""
        kind = Failure if why.damaged else UserError
        return kind(f"{self.name}: {self.members[index]} {why}{many}")

    def _count_unusable(self, function: Callable[[int], Any]) -> int:
        """Return for how many images `function` answers Unusable, looking at a few of them at a time."""
        results = (result for rows in chunks(len(self), 8 * THREADS) for result in self._each(function, rows))
        return sum(isinstance(result, decode.Unusable) for result in results)

    def _each(self, function: Callable[[int], T], indices: Sequence[int]) -> list[T]:
        if len(indices) < THREADS or THREADS == 1:
            return [function(index) for index in indices]
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(function, indices, chunksize=8))

    def _header(self, index: int) -> decode.Header | decode.Unusable:
        try:
            return decode.header(self._read(self.members[index]))
        except decode.Unusable as why:
            return why

    def _pixels(self, index: int) -> Any:
        try:
            return decode.pixels(self._read(self.members[index]), grey=self.grey, side=self.resize)
        except decode.Unusable as why:
            return why

    def _read(self, member: str) -> bytes:
        try:
            return self._zip().read(member) if self._zip is not None else (self.path / member).read_bytes()
        except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
            raise decode.Unusable(f"is not a readable image ({first_line(error)})", damaged=True) from error


def open_images(path: str | Path, *, resize: int | None = None) -> ImageFiles | StreamedImages:
    """Return the images at a path: a folder, a .zip or a .npz with `arr_0`. UserError if it is none of these."""
    path = Path(path)
    if path.is_dir() or path.suffix.lower() == ".zip":
        if not path.exists():
            raise UserError(f"{path} does not exist")
        return ImageFiles(path, resize=resize)
    if not path.is_file():
        raise UserError(f"{path} does not exist: expected a folder of images, a .zip or a .npz")
    if path.suffix.lower() != ".npz":
        raise UserError(f"{path}: expected a folder of images, a .zip or a .npz")
    return StreamedImages(path, resize=resize)


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise Failure(f"{path} cannot be read: {first_line(error)}") from error


def _refuse_hostile(name: str, infos: Iterable[zipfile.ZipInfo]) -> None:
    seen = set()
    for info in infos:
        member = info.filename
        if PurePosixPath(member).is_absolute() or ".." in PurePosixPath(member).parts or "\\" in member:
            raise UserError(f"{name}: {member} points outside of the archive; make the archive again without it")
        if member in seen:
            raise UserError(f"{name}: {member} is there twice; make the archive again")
        seen.add(member)
        if info.file_size > BOMB_BYTES and info.file_size > BOMB_RATIO * max(info.compress_size, 1):
            raise UserError(
                f"{name}: {member} would unpack {info.compress_size:,} bytes to {info.file_size:,}: possible "
                "decompression bomb"
            )


def _refuse_equal_places(name: str, members: Sequence[str], *, ours: bool) -> None:
    """UserError where two files are the same image by their names: 7.png and 007.png, or a.png and a.jpg."""
    seen: dict[tuple[str, str], str] = {}
    for member in members:
        path = PurePosixPath(member)
        stem = str(int(path.stem)) if path.stem.isdecimal() else path.stem
        key = ("" if ours and path.stem.isdecimal() else path.parent.as_posix(), stem)
        if key in seen:
            raise UserError(f"{name}: {seen[key]} and {member} both are image {stem}; remove one of them")
        seen[key] = member
