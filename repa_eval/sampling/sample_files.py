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

from repa_eval.errors import Failure, UserError, parsing
from repa_eval.runtime.files import disk_space, is_leftover, read_json, remove_leftovers, temporary_name, write_atomic
from repa_eval.sampling.sample_record import NUM, RECORD, matching_record, record_num, record_path, record_text

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
        before = matching_record(path, record)
        if before is None and path.is_dir() and any(path.iterdir()):
            raise UserError(f"{path} is not empty and contains no samples of repa-eval; choose another --out")
        if next(path.glob("[0-9]*/*.png" if flat else "[0-9]*.png"), None) is not None:
            advice = "leave out --flat" if flat else "add --flat"
            raise UserError(f"{path} contains samples in the other layout; {advice} or choose another --out")
        if before is None:
            with disk_space(path):
                write_atomic(path / RECORD, record_text(record))

    def file(self, index: int) -> Path:
        """Return the file of a sample."""
        name = f"{index:06d}.png"
        return self.path / name if self.flat else self.path / f"{index // PER_FOLDER:05d}" / name

    def missing(self, count: int) -> list[int]:
        """Record that `count` samples are wanted, and return the indices that are not there yet.

        What a killed process left of a file is removed. UserError where samples of higher indices are there: whoever
        measures the folder would measure these too.
        """
        present = self._present()
        wanted = [self.file(index) for index in range(count)]
        if surplus := len(present.difference(wanted)):
            raise UserError(
                f"{self.path} contains {len(present)} samples, {surplus} of them beyond the {count} that are asked "
                "for; choose another --out"
            )
        record_num(self.path, count)
        return [index for index, file in enumerate(wanted) if file not in present]

    def _present(self) -> set[Path]:
        """Return the samples that are there, whatever their index."""
        folders = [self.path] if self.flat else [path for path in self.path.glob("[0-9]*") if path.is_dir()]
        present = set()
        for file in (file for folder in folders for file in folder.iterdir()):
            if is_leftover(file):
                file.unlink(missing_ok=True)
            elif file.suffix == ".png" and file.stem.isdecimal():
                present.add(file)
        return present

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
        before = matching_record(path, record)
        if before is None and path.exists():
            raise UserError(f"{path} exists and contains no samples of repa-eval; choose another --out")
        if not path.exists() and matching_record(self.partial, record) is None:
            with disk_space(path):
                write_atomic(self.partial / RECORD, record_text(record))

    def missing(self, count: int) -> list[int]:
        """Record that `count` samples are wanted, and return the indices that are not there yet.

        What killed processes left is removed: of the npz, and the partial folder of one that is finished.
        """
        remove_leftovers(self.path)
        if self.path.exists():
            with parsing(f"{self.path} cannot be read"), np.load(self.path, allow_pickle=False) as archive:
                held = len(archive["arr_1"])
            if held != count:
                raise UserError(f"{self.path} is finished and holds {held} samples, not {count}; choose another --out")
            shutil.rmtree(self.partial, ignore_errors=True)
            return []
        record_num(self.partial, count)
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
        temporary = temporary_name(self.path)
        try:
            with disk_space(self.path):
                self._write(temporary, shape, labels)
                write_atomic(record_path(self.path), record_text({**self.record, NUM: len(labels)}))
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
    write_atomic(record_path(path), record_text(record))


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
