"""Read a file of weights without executing anything in it. The only place that calls torch.load.

Pickled files give tensors, plain values and the few classes of `pickled.py`; what a file declares is checked against
what it holds before anybody computes with it.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import safe_open
from torch import Tensor

from repa_eval.errors import Failure, UserError, first_line, parsing
from repa_eval.weight_files.pickled import ALLOWED, plain

ZIP = b"PK\x03\x04"
PICKLED = (ZIP, b"\x80")  # how files of torch begin, today's and those from before it wrote zip archives
AGAIN = "download or save it again"
SCRIPT = "constants.pkl"  # a member that only TorchScript archives have


def read_file(file: Path, *, owner: str = "", kind: str = "checkpoint", mapped: bool = True) -> Any:
    """Return the content of a torch or safetensors file; tensors stay on disk (mapped) until they are touched.

    Containers come as plain dicts, lists and tuples, a pickled nn.Embedding as `EmbeddingState`, arrays as numpy
    arrays. owner: stands before the file in errors ("teacher dinov2-vit-b"); kind: what the file should be; mapped:
    False copies tensors into memory, for a reader that outlives the file. UserError for a path that is not a file;
    Failure for a file that is damaged, of another kind, or needs code execution.
    """
    where = f"{owner}: {file}" if owner else str(file)
    start = _start_of(file, where, kind)
    if _is_safetensors(start, file) or (file.suffix == ".safetensors" and not start.startswith(PICKLED)):
        return read_safetensors(file, owner=owner)[0]
    if start.startswith(ZIP):
        _check_archive(file, where, kind)
    try:
        with warnings.catch_warnings(), torch.no_grad(), torch.serialization.safe_globals(ALLOWED):
            warnings.simplefilter("ignore")
            content = _unpickled(file, mapped=start.startswith(ZIP))
    except Exception as error:  # whatever torch's readers raise, the file is at fault
        _refuse(where, kind, start, error)
    return plain(content, where, size=file.stat().st_size, copied=not mapped)


def _unpickled(file: Path, *, mapped: bool) -> Any:
    """Return the content of a pickled file.

    mapped: a map stays within the file, whatever lengths it declares; files older than the zip format have none.
    """
    if file.suffix == ".safetensors":  # torch would go by the name
        with open(file, "rb") as handle:
            return torch.load(handle, map_location="cpu", weights_only=True)
    return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)


def read_safetensors(file: Path, *, owner: str = "") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return (tensors by name, metadata) of a safetensors file, mapped; errors as `read_file`."""
    where = f"{owner}: {file}" if owner else str(file)
    _start_of(file, where, "safetensors file")
    with parsing(f"{where} is not a readable safetensors file"), safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (not a dict)
        return tensors, dict(opened.metadata() or {})


def open_safetensors(file: Path) -> safe_open:
    """Return an opened safetensors file, whose tensors can be read by rows (`get_slice`); errors as `read_file`."""
    _start_of(file, str(file), "safetensors file")
    try:
        return safe_open(file, framework="pt")
    except Exception as error:  # of a library that has one for every field of a header
        raise Failure(f"{file} is not a readable safetensors file: it is damaged or ends early; {AGAIN}") from error


def _start_of(file: Path, where: str, kind: str) -> bytes:
    """Return the first bytes of a file; UserError for what is not one, Failure for one that cannot be opened."""
    if not file.exists():
        raise UserError(f"{where} does not exist")
    if not file.is_file():
        kind = "a folder" if file.is_dir() else "not a regular file"
        raise UserError(f"{where} is {kind}; name a file of weights")
    try:
        with open(file, "rb") as handle:
            start = handle.read(16)
    except OSError as error:
        raise Failure(f"{where} cannot be read: {error.strerror}") from error
    if not start:
        raise Failure(f"{where} is not a {kind}: it is empty (0 bytes); {AGAIN}")
    return start


def _is_safetensors(start: bytes, file: Path) -> bool:
    """Return whether a file of another name begins as safetensors do: the length of a JSON header, then the header."""
    length = int.from_bytes(start[:8], "little")
    return start[8:9] == b"{" and 8 + length <= file.stat().st_size


def _check_archive(file: Path, where: str, kind: str) -> None:
    """Failure for a zip that is cut off, was changed since it was written, or is a TorchScript program."""
    with parsing(f"{where} is not a readable {kind}"):
        whole = zipfile.is_zipfile(file)
    if not whole:
        raise Failure(f"{where} is not a readable {kind}: its end is missing; {AGAIN}")
    with parsing(f"{where} is not a readable {kind}"), zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if any(member.filename.rpartition("/")[2] == SCRIPT for member in members):
            raise Failure(
                f"{where} is a TorchScript program, and nothing in a file is executed; if you trust it, save its "
                "tensors: torch.save(torch.jit.load(FILE, 'cpu').state_dict(), 'weights.pt')"
            )
        if any(member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 for member in members):
            raise Failure(f"{where} is not a {kind}: its members are compressed or encrypted")
        checked = any(member.CRC for member in members)  # torch can be told to write none
        damaged = archive.testzip() if checked else None
        if damaged is not None:
            raise Failure(f"{where} is not a readable {kind}: the checksum of {damaged} is wrong; {AGAIN}")


def _refuse(where: str, kind: str, start: bytes, error: Exception) -> NoReturn:
    """Failure in one line; torch's own texts advise to load without its checks, and are not passed on."""
    wanted = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
    if wanted is not None:
        raise Failure(
            f"{where} needs code execution to load (it asks for {wanted[1]}), which is never allowed; save its "
            "state_dict() instead"
        ) from error
    if start.startswith(ZIP) and not isinstance(error, pickle.UnpicklingError):
        raise Failure(f"{where} is not a readable {kind}: {first_line(error)}") from error
    raise Failure(f"{where} is not a {kind} (or needs code execution to load, which is never allowed)") from error
