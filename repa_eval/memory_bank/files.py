"""Memory banks in files: the published .pth (a tensor, or the dict of an SVD), .npy, and safetensors with provenance.

Nothing in a file is executed; what is in it is checked before anything is computed from it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repa_eval.errors import Failure, UserError, parsing, short_repr
from repa_eval.memory_bank.bank import BLOCK, Bank, FullBank, SVDBank, of_tensors
from repa_eval.runtime.files import parse_json, temporary_name
from repa_eval.runtime.npy_header import read_npy_header
from repa_eval.weight_files.reading import read_file, read_safetensors

SUFFIXES = (".safetensors", ".pth")
RECORD = "memory_bank"  # the entry of the metadata that holds the record
PARTS = ("C", "M", "S", "mean")
DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16"}


def load_bank(path: str | Path, *, what: str = "") -> Bank:
    """Return the memory bank in a file, mapped where the format allows; what: the option that named it, for errors.

    UserError if the file is none; Failure if it is damaged or holds numbers that are not finite.
    """
    path = Path(path)
    where = f"{what} {path}".strip()
    if not path.is_file():
        raise UserError(f"{where} does not exist")
    content, record = _read(path, what)
    bank = _understood(content, record, where)
    _refuse_bad_rows(bank, where)
    return bank


def save_bank(bank: Bank, path: str | Path) -> None:
    """Write a bank under a temporary name and rename it. .safetensors keeps the record; .pth is the published form."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: a memory bank is a .safetensors file, or .pth in the published form")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        if path.suffix == ".pth":
            torch.save(_published(bank), temporary)
        else:
            _write_safetensors(bank, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Path, what: str) -> tuple[Any, dict[str, Any]]:
    """Return (content, record) of a file."""
    where = f"{what} {path}".strip()
    if path.suffix == ".npy":
        with parsing(f"{where} cannot be read"):
            with open(path, "rb") as stream:
                read_npy_header(stream)
            return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False)), {}
    if path.suffix != ".safetensors":
        return read_file(path, owner=what, kind="memory bank"), {}
    tensors, metadata = read_safetensors(path, owner=what)
    record = parse_json(metadata.get(RECORD, "{}"), f"{where}: its record is damaged")
    return dict(sorted(tensors.items())), record if isinstance(record, dict) else {}


def _understood(content: Any, record: Mapping[str, Any], where: str) -> Bank:
    """Return the bank that the content of a file is."""
    if isinstance(content, Tensor):
        content = {"snippets": content}
    if not isinstance(content, dict) or not (set(content) == {"snippets"} or set(PARTS) <= set(content)):
        held = f" (its keys: {', '.join(sorted(map(str, content))[:5])})" if isinstance(content, dict) else ""
        raise UserError(
            f"{where} holds {type(content).__name__}, not one tensor (N, D) or the C, M, S and mean of its SVD{held}"
        )
    names = ("snippets",) if "snippets" in content else PARTS
    tensors = {name: content[name] for name in names}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise UserError(f"{where}: {name} is {getattr(tensor, 'dtype', type(tensor).__name__)}, not floats")
    if "mean" in tensors:
        tensors["mean"] = tensors["mean"].flatten()
    wrong = _misshapen({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    if wrong:
        raise UserError(f"{where} is not a memory bank: {wrong}")
    for key, length in (("latent_dim", len(tensors.get("S", ()))), ("feature_dim", len(tensors.get("mean", ())))):
        told = content.get(key, length)
        if not isinstance(told, int) or told != length:
            raise UserError(f"{where} is not a memory bank: {key} {short_repr(told)}, but its tensors have {length}")
    return of_tensors(tensors, record)


def _misshapen(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return what is wrong with the shapes, "" if they fit each other."""
    if "snippets" in shapes:
        shape = shapes["snippets"]
        return "" if len(shape) == 2 and all(shape) else f"its tensor is {shape}, not (N, D)"
    C, M, S, mean = (shapes[name] for name in PARTS)
    fits = len(C) == len(M) == 2 and all(C) and all(M) and S == C[1:] == M[1:] and mean == M[:1]
    return "" if fits else f"C {C}, M {M}, S {S} and mean {mean} are not (N, d), (D, d), (d,) and (D,)"


def _refuse_bad_rows(bank: Bank, where: str) -> None:
    """Failure for numbers that are not finite; UserError for a snippet of zeros, which has no direction."""
    for name, tensor in bank.tensors().items():
        for first in range(0, len(tensor), BLOCK):
            part = tensor[first : first + BLOCK]
            if not part.isfinite().all():
                bad = ~part.isfinite().reshape(len(part), -1).all(1)
                raise Failure(f"{where}: {name} is not finite in row {first + int(bad.int().argmax())}")
    if isinstance(bank, SVDBank) and bool((bank.S <= 0).any()):
        raise UserError(f"{where} is not a memory bank: a singular value in S is not positive")
    if isinstance(bank, FullBank):
        for first in range(0, len(bank), BLOCK):
            empty = ~bank.snippets[first : first + BLOCK].any(dim=1)
            if bool(empty.any()):
                raise UserError(
                    f"{where}: snippet {first + int(empty.int().argmax())} is all zeros: it has no direction"
                )


def _published(bank: Bank) -> Any:
    """Return what LINs-lab/GMem's bank classes save."""
    tensors = {name: tensor.contiguous() for name, tensor in bank.tensors().items()}
    if isinstance(bank, SVDBank):
        return {**tensors, "latent_dim": bank.latent_dim, "feature_dim": bank.width}
    return tensors["snippets"]


def _write_safetensors(bank: Bank, file: Path) -> None:
    """Write block by block: a bank that is mapped from a file larger than the memory is copied all the same."""
    header: dict[str, Any] = {"__metadata__": {RECORD: json.dumps(dict(bank.record), sort_keys=True)}}
    tensors, place = bank.tensors(), 0
    for name, tensor in tensors.items():
        offsets = [place, place + tensor.nbytes]
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        place = offsets[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at multiples of 8 bytes
    with open(file, "wb") as handle:
        handle.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            for first in range(0, len(tensor), BLOCK):
                part = tensor[first : first + BLOCK].detach().cpu().contiguous()
                handle.write(part.reshape(-1).view(torch.uint8).numpy().tobytes())
