"""Files of reference statistics: ADM's npz, mu and sigma alone, torch-fidelity's caches, clean-fid's stats, and ours.

Ours have ADM's layout (mu, sigma, mu_s, sigma_s, arr_0) and `provenance`, JSON that says what they were made of, so
that a reference of another extractor, resize rule or resolution is refused instead of compared.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np

from repa_eval.data.readers.arrays import Member, array_names, is_zip
from repa_eval.data.readers.gaussian import checked_gaussian
from repa_eval.data.readers.listing import printable
from repa_eval.data.readers.npz import StreamedImages
from repa_eval.errors import Failure, UserError, parsing
from repa_eval.runtime.files import parse_json, remove_leftovers, temporary_name
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
        return printable(self.path)

    @property
    def n(self) -> int | None:
        """The number of images behind the statistics, None where the file does not say it."""
        recorded = self.provenance.get("n")
        if isinstance(recorded, int) and recorded > 0:
            return recorded
        return None if self.features is None else len(self.features)

    def digest(self) -> str:
        """Return the hash of the file."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return digest_file(self.path)


def open_statistics(path: Path) -> Statistics | None:
    """Return the statistics in a file, None for one of images. Failure or UserError for one that is damaged.

    A file of torch is found by its content or its suffix; whatever else is a zip of arrays is an npz.
    """
    if path.suffix.lower() in TORCH_SUFFIXES and not (path.is_file() and _is_npz(path)):
        return _torch_fidelity(path)
    if not path.is_file() or not (path.suffix.lower() == ".npz" or is_zip(path)):
        return None
    if is_zip(path) and _is_torch(path):
        return _torch_fidelity(path)
    names = array_names(path)
    if "feats" in names:  # clean-fid's, for kernel distances
        return Statistics(path, features=_checked_features(path, _numbers(path, "feats").whole()))
    if "mu" not in names:
        return None
    if "sigma" not in names:
        raise UserError(
            f"{printable(path)}: mu without sigma; a reference holds both (repa-eval stats DATA --out "
            f"{printable(path.name)})"
        )
    mu, sigma = _gaussian(path, "mu", "sigma")
    mu_s, sigma_s = _gaussian(path, "mu_s", "sigma_s") if {"mu_s", "sigma_s"} <= set(names) else (None, None)
    images = StreamedImages(path) if "arr_0" in names and len(Member(path, "arr_0")) else None
    return Statistics(path, mu, sigma, mu_s, sigma_s, images=images, provenance=_provenance(path, names))


def write_statistics(
    path: Path,
    arrays: Mapping[str, Array],
    images: Iterable[Array],
    shape: tuple[int, ...],
    provenance: Mapping[str, Any],
) -> None:
    """Write arrays (mu, sigma, ...), images uint8 (N, H, W, C) that come in batches, N in all `shape`, and provenance.

    Without images there is no arr_0. The file appears when it is complete.
    """
    remove_leftovers(path)
    temporary = temporary_name(path)
    temporary.parent.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for name, array in {**arrays, "provenance": np.array(json.dumps(dict(provenance)))}.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
            if shape[0]:
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


def _is_torch(path: Path) -> bool:
    """Return whether a zip is one that torch.save wrote."""
    with parsing(f"{printable(path)} cannot be read"), zipfile.ZipFile(path) as archive:
        return any(name.rpartition("/")[2] == "data.pkl" for name in archive.namelist())


def _is_npz(path: Path) -> bool:
    return is_zip(path) and not _is_torch(path)


def _numbers(path: Path, name: str) -> Member:
    """Return an array of real numbers, not read yet."""
    member = Member(path, name)
    if not member.shape or member.dtype.kind not in "fiu":
        raise UserError(f"{printable(path)}: {name} is {member.dtype} {member.shape}; expected an array of numbers")
    return member


def _gaussian(path: Path, mean: str, covariance: str) -> tuple[Array, Array]:
    return checked_gaussian(path, _numbers(path, mean), _numbers(path, covariance), (mean, covariance))


def _provenance(path: Path, names: list[str]) -> Mapping[str, Any]:
    if "provenance" not in names:
        return {}
    member = Member(path, "provenance")
    if member.size > MOST_PROVENANCE:
        raise Failure(f"{printable(path)} cannot be read: its provenance takes {member.size:,} bytes")
    with parsing(f"{printable(path)} cannot be read"), np.load(path, allow_pickle=False) as archive:
        record = parse_json(str(archive["provenance"]), f"{printable(path)}: its provenance is damaged")
    return record if isinstance(record, dict) else {}


def _torch_fidelity(path: Path) -> Statistics:
    """Return a cache file of torch-fidelity: {"mu", "sigma"} arrays, or a tensor of features (N, D)."""
    import torch

    from repa_eval.weight_files.reading import read_file

    if not path.is_file():
        raise UserError(f"reference {printable(path)} does not exist")
    content = read_file(path, kind="cache of torch-fidelity")
    if isinstance(content, torch.Tensor):
        return Statistics(path, features=_checked_features(path, _array(content)))
    if not isinstance(content, dict) or not {"mu", "sigma"} <= set(content):
        raise UserError(f"{printable(path)}: expected torch-fidelity's statistics (mu, sigma) or features (N, D)")
    mu, sigma = content["mu"], content["sigma"]
    if not (isinstance(mu, torch.Tensor | np.ndarray) and isinstance(sigma, torch.Tensor | np.ndarray)):
        raise UserError(
            f"{printable(path)}: mu is a {type(mu).__name__} and sigma a {type(sigma).__name__}, not arrays"
        )
    return Statistics(path, *checked_gaussian(path, _Held(mu), _Held(sigma), ("mu", "sigma")))


class _Held:
    """An array or tensor of a torch file, as `checked_gaussian` reads it."""

    def __init__(self, values: Any) -> None:
        self.values, self.shape, self.dtype = values, tuple(values.shape), values.dtype

    def whole(self) -> Array:
        """Return it as a numpy array."""
        return _array(self.values)


def _array(values: Any) -> Array:
    """Return a tensor as an array; of a type that numpy does not have (bfloat16, float8), as float32."""
    import torch

    if not isinstance(values, torch.Tensor):
        return np.asarray(values)
    values = values.detach().resolve_conj().cpu()
    of_numpy = values.dtype in (torch.float16, torch.float32, torch.float64) or not values.is_floating_point()
    return (values if of_numpy else values.float()).numpy()


def _checked_features(path: Path, features: Array) -> Array:
    if features.ndim != 2 or features.dtype.kind != "f" or not len(features):
        raise UserError(f"{printable(path)}: features are {features.dtype} {features.shape}; expected floats (N, D)")
    return features
