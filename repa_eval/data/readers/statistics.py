"""Files of reference statistics: ADM's npz, mu and sigma alone, torch-fidelity's caches, clean-fid's stats, and ours.

Ours have ADM's layout (mu, sigma, mu_s, sigma_s, arr_0) and `provenance`, JSON that says what they were made of, so
that a reference of another extractor, resize rule or resolution is refused instead of compared.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from repa_eval.data.readers.npz import Member, StreamedImages, array_names
from repa_eval.errors import Failure, UserError, parsing
from repa_eval.runtime.hashing import digest_file

Array = np.ndarray[Any, Any]
TORCH_SUFFIXES = (".pt", ".pth")
MOST_PROVENANCE = 1 << 20  # bytes


@dataclass(frozen=True)
class Statistics:
    """Reference statistics. mu (D,), sigma (D, D); mu_s, sigma_s: those of the spatial map; images: `arr_0`.

    features (N, D): where the file holds these instead. provenance: what the file says of itself, {} for nothing.
    """

    path: Path
    mu: Array | None = None
    sigma: Array | None = None
    mu_s: Array | None = None
    sigma_s: Array | None = None
    features: Array | None = None
    images: StreamedImages | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The file."""
        return str(self.path)

    @property
    def n(self) -> int | None:
        """The number of images behind the statistics, None where the file does not say it."""
        return self.provenance.get("n") or (None if self.features is None else len(self.features))

    def digest(self) -> str:
        """Return the hash of the file."""
        return digest_file(self.path)


def open_statistics(path: Path) -> Statistics | None:
    """Return the statistics in a file, None for a file of images. Failure or UserError for one that is damaged."""
    if path.suffix.lower() in TORCH_SUFFIXES:
        return _torch_fidelity(path)
    if path.suffix.lower() != ".npz" or not path.is_file():
        return None
    names = array_names(path)
    if "feats" in names:  # clean-fid's, for kernel distances
        return Statistics(path, features=_checked_features(path, _read(path, "feats")))
    if "mu" not in names:
        return None
    if "sigma" not in names:
        raise UserError(f"{path}: mu without sigma; a reference holds both (repa-eval stats DATA --out {path.name})")
    mu, sigma = _gaussian(path, "mu", "sigma")
    mu_s, sigma_s = _gaussian(path, "mu_s", "sigma_s") if {"mu_s", "sigma_s"} <= set(names) else (None, None)
    images = StreamedImages(path) if "arr_0" in names else None
    return Statistics(path, mu, sigma, mu_s, sigma_s, images=images, provenance=_provenance(path, names))


def write_statistics(
    path: Path,
    arrays: Mapping[str, Array],
    images: Iterable[Array],
    shape: tuple[int, ...],
    provenance: Mapping[str, Any],
) -> None:
    """Write arrays (mu, sigma, ...), images uint8 (N, H, W, C) that come in batches, N in all `shape`, and provenance.

    The file appears when it is complete.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for name, array in {**arrays, "provenance": np.array(json.dumps(dict(provenance)))}.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
            with archive.open("arr_0.npy", "w", force_zip64=True) as member:
                _write_images(member, images, shape)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_images(member: IO[bytes], images: Iterable[Array], shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": shape})
    count = 0
    for batch in images:
        member.write(np.ascontiguousarray(batch).tobytes())
        count += len(batch)
    assert count == shape[0]


def _read(path: Path, name: str) -> Array:
    member = Member(path, name)
    if not member.shape or member.dtype.kind not in "fiu":
        raise UserError(f"{path}: {name} is {member.dtype} {member.shape}; expected an array of numbers")
    return member.rows(0, len(member))


def _gaussian(path: Path, mean: str, covariance: str) -> tuple[Array, Array]:
    mu, sigma = _read(path, mean).astype(np.float64), _read(path, covariance).astype(np.float64)
    return _fitting(path, mu, sigma, (mean, covariance))


def _fitting(path: Path, mu: Array, sigma: Array, names: tuple[str, str]) -> tuple[Array, Array]:
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise UserError(f"{path}: {names[0]} is {mu.shape} and {names[1]} {sigma.shape}; expected (D,) and (D, D)")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise UserError(f"{path}: {names[0]} or {names[1]} holds NaN or infinity; make the statistics again")
    return mu, sigma


def _provenance(path: Path, names: list[str]) -> Mapping[str, Any]:
    if "provenance" not in names:
        return {}
    member = Member(path, "provenance")
    if member.size > MOST_PROVENANCE:
        raise Failure(f"{path} cannot be read: its provenance takes {member.size:,} bytes")
    with parsing(f"{path} cannot be read"), np.load(path, allow_pickle=False) as archive:
        record = json.loads(str(archive["provenance"]))
    return record if isinstance(record, dict) else {}


def _torch_fidelity(path: Path) -> Statistics:
    """Return a cache file of torch-fidelity: {"mu", "sigma"} arrays, or a tensor of features (N, D)."""
    import torch

    from repa_eval.weight_files.reading import read_file

    if not path.is_file():
        raise UserError(f"reference {path} does not exist")
    content = read_file(path, kind="cache of torch-fidelity")
    if isinstance(content, torch.Tensor):
        numbers = content.float() if content.dtype == torch.bfloat16 else content  # numpy has no bfloat16
        return Statistics(path, features=_checked_features(path, numbers.numpy()))
    if not isinstance(content, dict) or not {"mu", "sigma"} <= set(content):
        raise UserError(f"{path}: expected torch-fidelity's statistics (mu, sigma) or features (N, D)")
    with parsing(f"{path}: mu and sigma are not arrays of numbers"):
        mu, sigma = (np.asarray(content[key], dtype=np.float64) for key in ("mu", "sigma"))
    return Statistics(path, *_fitting(path, mu, sigma, ("mu", "sigma")))


def _checked_features(path: Path, features: Array) -> Array:
    if features.ndim != 2 or features.dtype.kind != "f" or not len(features):
        raise UserError(f"{path}: features are {features.dtype} {features.shape}; expected floats (N, D)")
    return features
