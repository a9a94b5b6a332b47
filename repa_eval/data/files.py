"""Images in files: a folder (nested or flat), a zip of images, or an npz with `arr_0` (N, H, W, C)."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from repa_eval.data._registry import Images, data
from repa_eval.errors import Failure, UserError, first_line

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})


class ImageFiles:
    """A folder or zip of images of one size, sorted by path; a folder per class gives the labels."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self.path = path
        self._zip = _open_zip(path) if path.is_file() else None
        self.members = self._list()
        if not self.members:
            raise UserError(f"{path}: no images (looked for {', '.join(sorted(SUFFIXES))})")
        self._mode = "L" if self._open(0).mode in ("L", "1", "I;16") else "RGB"
        parents = [Path(member).parent.as_posix() for member in self.members]
        self.class_names = tuple(sorted(set(parents)))
        self._labels = np.array([self.class_names.index(parent) for parent in parents])

    def __len__(self) -> int:
        return len(self.members)

    def fetch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return (images uint8 (B, C, H, W), labels int64 (B,)) at `indices`."""
        arrays = [np.atleast_3d(np.asarray(self._open(index).convert(self._mode))) for index in indices]
        shapes = {array.shape for array in arrays}
        if len(shapes) > 1:
            odd = next(i for i, array in zip(indices, arrays, strict=True) if array.shape != arrays[0].shape)
            raise UserError(f"{self.name}: images of different sizes; {self.members[odd]} is not like the first")
        stacked = np.ascontiguousarray(np.stack(arrays).transpose(0, 3, 1, 2))
        return torch.from_numpy(stacked), torch.from_numpy(self._labels[list(indices)])

    def digest(self) -> str:
        """Return a hash of the files' names and bytes."""
        content = hashlib.sha256()
        for member in self.members:
            content.update(member.encode())
            content.update(self._read(member))
        return content.hexdigest()[:12]

    def _list(self) -> list[str]:
        if self._zip is not None:
            names = [info.filename for info in self._zip.infolist() if not info.is_dir()]
        else:
            names = [path.relative_to(self.path).as_posix() for path in self.path.rglob("*") if path.is_file()]
        return sorted(name for name in names if Path(name).suffix.lower() in SUFFIXES and Path(name).name[0] != ".")

    def _read(self, member: str) -> bytes:
        return self._zip.read(member) if self._zip is not None else (self.path / member).read_bytes()

    def _open(self, index: int) -> Image.Image:
        member = self.members[index]
        try:
            image = Image.open(io.BytesIO(self._read(member)))
            image.load()
        except (UnidentifiedImageError, OSError, SyntaxError, zipfile.BadZipFile) as error:
            raise Failure(f"{self.name}: {member} is not a readable image ({error})") from error
        return image


def open_images(path: str | Path) -> ImageFiles | Images:
    """Return the images at a path: a folder, a .zip or a .npz with `arr_0`. UserError if it is none of these."""
    path = Path(path)
    if path.is_dir() or path.suffix.lower() == ".zip":
        if not path.exists():
            raise UserError(f"{path} does not exist")
        return ImageFiles(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist: expected a folder of images, a .zip or a .npz")
    if path.suffix.lower() != ".npz":
        raise UserError(f"{path}: expected a folder of images, a .zip or a .npz")
    return _npz(path)


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise Failure(f"{path} cannot be read: {first_line(error)}") from error


def _npz(path: Path) -> Images:
    try:
        archive = np.load(path, allow_pickle=False)
        held = archive if isinstance(archive, Mapping) else {}  # a lone array is no archive
        arrays = {key: held[key] for key in ("arr_0", "arr_1") if key in held}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise Failure(f"{path} cannot be read: {first_line(error)}") from error
    pixels = arrays.get("arr_0")
    if pixels is None or pixels.ndim != 4 or pixels.dtype != np.uint8:
        raise UserError(f"{path}: expected arr_0 of uint8 (N, H, W, C)")
    labels: Any = arrays.get("arr_1", np.zeros(len(pixels), dtype=np.int64))
    images = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    return Images(str(path), "all", images, labels.astype(np.int64), int(labels.max(initial=0)) + 1)


@data("folder")
def load(rest: str, split: str) -> Images:
    """Return the images at `folder:PATH` in memory; every split is the whole folder."""
    source = open_images(rest)
    if isinstance(source, Images):
        return source
    images, labels = source.fetch(range(len(source)))
    names = source.class_names
    return Images(f"folder:{rest}", split, images.numpy(), labels.numpy(), len(names), names)
