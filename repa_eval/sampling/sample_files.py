"""Generated images on disk: PNG files (a folder per thousand, or flat) or one npz, and the protocol beside them.

Both kinds are filled index by index, by one process or several, and continue where they were interrupted.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from repa_eval.errors import Failure, UserError
from repa_eval.runtime.files import disk_space, read_json, read_object, write_atomic

RECORD = "samples.json"
PER_FOLDER = 1000


class Samples(Protocol):
    """Where images go."""

    def missing(self, count: int) -> list[int]:
        """Return the indices below `count` that are not there yet."""

    def add(self, indices: Iterable[int], images: Tensor) -> None:
        """Write images uint8 (B, C, H, W)."""

    def finish(self, labels: np.ndarray[Any, Any]) -> None:
        """Conclude, all of len(labels) images being there; one process does it."""


def open_samples(path: Path, record: Mapping[str, Any], *, flat: bool = False) -> Samples:
    """Return the samples at `path`, begun or to be begun: an npz by its suffix, else a folder."""
    if path.suffix != ".npz":
        return SampleFolder(path, record, flat=flat)
    if flat:
        raise UserError(f"--flat is a layout of folders; {path} is an npz")
    return SampleArray(path, record)


class SampleFolder:
    """PNG files DIR/00000/000000.png ..., flat: DIR/000000.png ...; what exists is kept, so that a run continues."""

    def __init__(self, path: Path, record: Mapping[str, Any], *, flat: bool = False) -> None:
        self.path, self.flat = path, flat
        before = _checked(path, record)
        if before is None and path.is_dir() and any(path.iterdir()):
            raise UserError(f"{path} is not empty and contains no samples of repa-eval; choose another --out")
        if next(path.glob("[0-9]*/*.png" if flat else "[0-9]*.png"), None) is not None:
            advice = "leave out --flat" if flat else "add --flat"
            raise UserError(f"{path} contains samples in the other layout; {advice} or choose another --out")
        if before is None:
            with disk_space(path):
                write_atomic(path / RECORD, _json(record))

    def file(self, index: int) -> Path:
        """Return the file of a sample."""
        name = f"{index:06d}.png"
        return self.path / name if self.flat else self.path / f"{index // PER_FOLDER:05d}" / name

    def missing(self, count: int) -> list[int]:
        """Return the indices below `count` that are not there yet."""
        return [index for index in range(count) if not self.file(index).is_file()]

    def add(self, indices: Iterable[int], images: Tensor) -> None:
        """Write images uint8 (B, C, H, W)."""
        for index, image in zip(indices, images.numpy(), strict=True):
            with disk_space(self.path):
                write_atomic(self.file(index), png(image), durable=False)

    def finish(self, labels: np.ndarray[Any, Any]) -> None:
        """Do nothing: every file is complete."""


class SampleArray:
    """One npz, arr_0 uint8 (N, H, W, C) and arr_1 labels, stored. Images are never all in memory.

    Until all are there they lie in the hidden folder .NAME.partial: `pixels`, each image at its place, and `done`, a
    byte an image that is set after its pixels are written.
    """

    def __init__(self, path: Path, record: Mapping[str, Any]) -> None:
        self.path, self.record = path, dict(record)
        self.partial = path.with_name(f".{path.name}.partial")
        before = _checked(path, record)
        if before is None and path.exists():
            raise UserError(f"{path} exists and contains no samples of repa-eval; choose another --out")
        if not path.exists() and _checked(self.partial, record) is None:
            with disk_space(path):
                write_atomic(self.partial / RECORD, _json(record))

    def missing(self, count: int) -> list[int]:
        """Return the indices below `count` that are not there yet."""
        if self.path.exists():
            with np.load(self.path, allow_pickle=False) as archive:
                held = len(archive["arr_1"])
            if held != count:
                raise UserError(f"{self.path} is finished and holds {held} samples, not {count}; choose another --out")
            return []
        file = self.partial / "done"
        done = file.read_bytes() if file.is_file() else b""
        return [index for index in range(count) if index >= len(done) or not done[index]]

    def add(self, indices: Iterable[int], images: Tensor) -> None:
        """Write images uint8 (B, C, H, W)."""
        pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
        with disk_space(self.path):
            if not (self.partial / "shape.json").is_file():
                write_atomic(self.partial / "shape.json", json.dumps(pixels.shape[1:]))
            with _opened(self.partial / "pixels") as data, _opened(self.partial / "done") as done:
                for index, image in zip(indices, pixels, strict=True):
                    _write_at(data, image.tobytes(), index * image.nbytes)
                    _write_at(done, b"\1", index)

    def finish(self, labels: np.ndarray[Any, Any]) -> None:
        """Make the npz of the first len(labels) images and drop the partial files."""
        if self.path.exists():
            return
        shape = tuple(read_json(self.partial / "shape.json"))
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            with disk_space(self.path):
                self._write(temporary, shape, labels)
                write_atomic(record_path(self.path), _json(self.record))
                temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)
        shutil.rmtree(self.partial)

    def _write(self, file: Path, shape: tuple[int, ...], labels: np.ndarray[Any, Any]) -> None:
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(labels), *shape)}
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            with (
                archive.open("arr_0.npy", "w", force_zip64=True) as member,
                open(self.partial / "pixels", "rb") as data,
            ):
                np.lib.format.write_array_header_1_0(member, header)
                _copy(data, member, len(labels) * int(np.prod(shape)))
            with archive.open("arr_1.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, labels)


def png(image: np.ndarray[Any, Any]) -> bytes:
    """Return the PNG of a uint8 (C, H, W) image, grey or RGB."""
    buffer = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


def save_npz(path: Path, images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], record: Mapping[str, Any]) -> None:
    """Write arr_0 uint8 (N, H, W, C) and arr_1 labels, stored, with the record in PATH.json beside it."""
    buffer = io.BytesIO()
    np.savez(buffer, arr_0=images.transpose(0, 2, 3, 1), arr_1=labels)
    write_atomic(path, buffer.getvalue())
    write_atomic(record_path(path), _json(record))


def record_path(path: Path) -> Path:
    """Return where the record of samples at `path` lies."""
    return path.with_name(path.name + ".json") if path.suffix == ".npz" else path / RECORD


def read_record(path: Path) -> dict[str, Any] | None:
    """Return how the samples at `path` were made, or None if nothing is recorded."""
    file = record_path(path)
    return read_object(file) if file.is_file() else None


def _checked(path: Path, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the record at `path`, None if there is none; UserError if it is another."""
    before = read_record(path)
    if before is not None and before != dict(record):
        differing = sorted(key for key in {*before, *record} if before.get(key) != record.get(key))
        raise UserError(
            f"{path} contains samples made with different settings ({', '.join(differing)}); choose another --out"
        )
    return before


def _json(record: Mapping[str, Any]) -> str:
    return json.dumps(dict(record), indent=1) + "\n"


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # not truncated: other processes write there too
    try:
        yield handle
    finally:
        os.close(handle)


def _write_at(handle: int, data: bytes, place: int) -> None:
    while data:  # a full disk takes a part first, and fails at the next attempt
        written = os.pwrite(handle, data, place)
        data, place = data[written:], place + written


def _copy(source: Any, target: Any, count: int) -> None:
    while count:
        part = source.read(min(count, 1 << 24))
        if not part:
            raise Failure(f"{source.name} is shorter than it should be; remove its folder and begin again")
        target.write(part)
        count -= len(part)
