"""Latents in safetensors shards, as the tools of LightningDiT, GMem and ERW write them: read by rows, never whole."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repa_eval.data.readers.listing import printable
from repa_eval.data.readers.moment_members import SD_VAE
from repa_eval.data.readers.npz import MAX_LABEL
from repa_eval.data.readers.opened import PerProcess
from repa_eval.errors import Failure, UserError, parsing
from repa_eval.interfaces.image_source import (
    DEFAULT_KINDS,
    Array,
    ImageSource,
    LatentScale,
    Samples,
    Shape,
    content_digest,
)
from repa_eval.weight_files.reading import open_safetensors, read_file

LABELS, FLIPPED = "labels", "latents_flip"
# what a kind of data is called in the files of each tool; "_flip" behind it: made of the mirrored image
CALLED = {
    "latents": ("latents",),
    "features": ("representations", "encoder_0_features"),  # GMem's, ERW's
    "class_tokens": ("cls_tokens",),
}
ERW = frozenset({"encoder_0_features"})
AXES = {"latents": 4, "features": 3, "class_tokens": 2}
STATISTICS = "latents_stats.pt"
OF_RANK = re.compile(r"_rank([0-9]+)_")  # LightningDiT's and GMem's tools write the shards of every process
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
WHOLE = frozenset({"I64", "I32", "I16", "I8", "U8"})


@dataclass(frozen=True)
class _Shard:
    """One file. shapes: those of its tensors, by name."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def where(self) -> str:
        return printable(self.path)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self.shapes)

    @property
    def count(self) -> int:
        return self.shapes["latents"][0]

    @property
    def shape(self) -> Shape:
        _, channels, height, width = self.shapes["latents"]
        return channels, height, width


class Shards(ImageSource):
    """The latents of shards in the order of their names, and an encoder's features where they hold them.

    mirrored: the same of mirrored images (`latents_flip` and others), which never stand among the unmirrored.
    latent_scale: that of latents_stats.pt beside them, (z - mean) / std per channel. ERW's tool writes latents that are
    scaled already; they are returned unscaled. Others without statistics have the scale 1.
    """

    split, split_known = "all", False

    def __init__(self, name: str, paths: Sequence[Path]) -> None:
        self.name = name
        self._open = [PerProcess(functools.partial(open_safetensors, path)) for path in paths]
        self._shards = [_look(path, opened()) for path, opened in zip(paths, self._open, strict=True)]
        first = self._shards[0]
        for shard in self._shards[1:]:
            _refuse_other_set(first, shard)
        self._ends = np.cumsum([shard.count for shard in self._shards])
        self._called: Mapping[str, str] = _names_of(first, "")
        self.latent_shape = first.shape
        self.labels = self._all_labels() if LABELS in first.names else None
        self.gives = frozenset(self._called) if self.labels is None else frozenset({*self._called, "labels"})
        self.num_classes = 1 if self.labels is None else int(self.labels.max(initial=0)) + 1
        widths = {first.shapes[name][-1] for kind, name in self._called.items() if kind != "latents"}
        if len(widths) > 1:
            raise UserError(f"{first.where}: features and class tokens of two encoders, of the widths {sorted(widths)}")
        self.feature_width = next(iter(widths), None)
        self.has_statistics = (statistics := paths[0].parent / STATISTICS).is_file()
        self._written = SD_VAE.scale[0] if first.names & ERW and not self.has_statistics else 1.0
        self.latent_scale = (
            statistics_scale(statistics, first.shape[0]) if self.has_statistics else LatentScale((self._written,))
        )
        if FLIPPED in first.names:
            self.mirrored = self._mirrored(_names_of(first, "_flip"))

    def _mirrored(self, called: Mapping[str, str]) -> Shards:
        """Return the same samples, all of their tensors under other names."""
        other = copy.copy(self)
        other._called, other.mirrored = called, None
        other.gives = frozenset(called) | (self.gives & {"labels"})
        other.__dict__.pop("_digest", None)
        return other

    def __len__(self) -> int:
        return int(self._ends[-1])

    def fetch(self, indices: Sequence[int], kinds: Collection[str] = DEFAULT_KINDS) -> Samples:
        """Return latents and labels at `indices`; Failure for a latent that is not finite."""
        rows = np.asarray(indices, dtype=np.int64)
        labels = None if self.labels is None or "labels" not in kinds else torch.from_numpy(self.labels[rows])
        found: dict[str, Any] = {kind: self._rows(name, rows) for kind, name in self._called.items() if kind in kinds}
        if "latents" in found and self._written != 1.0:
            found["latents"] = found["latents"] / self._written
        return Samples(labels=labels, **found)

    def digest(self) -> str:
        """Return the digest that the same latents have in any other layout."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return content_digest(self)

    def rows_of_images(self, count: int) -> Sequence[int] | None:
        """Return which row belongs to each of `count` images, None where there is no saying.

        Process r of R wrote the images r, r + R, ...; the last of them begin again at the first image, so that all
        processes write as many.
        """
        numbers = [OF_RANK.search(shard.path.name) for shard in self._shards]
        ranks = [-1 if number is None else int(number[1]) for number in numbers]
        sizes = {rank: sum(s.count for s, of in zip(self._shards, ranks, strict=True) if of == rank) for rank in ranks}
        processes = len(sizes)
        each = -(-count // processes)
        if ranks != sorted(ranks) or list(sizes) != list(range(processes)) or set(sizes.values()) != {each}:
            return None
        return [image % processes * each + image // processes for image in range(count)]

    def _rows(self, name: str, rows: Array) -> Tensor:
        """Return the rows of a tensor as float32; each run of neighbours is read at once."""
        found: Tensor | None = None
        order = np.argsort(rows, kind="stable")
        places = np.searchsorted(self._ends, rows[order], side="right")
        breaks = np.flatnonzero((np.diff(rows[order]) != 1) | (np.diff(places) != 0)) + 1
        for run in np.split(order, breaks) if len(order) else ():
            shard = int(np.searchsorted(self._ends, rows[run[0]], side="right"))
            begin = int(rows[run[0]]) - int(self._ends[shard]) + self._shards[shard].count
            with parsing(f"{self._shards[shard].where} cannot be read"):
                values = self._open[shard]().get_slice(name)[begin : begin + len(run)].float()
            if not bool((good := torch.isfinite(values).flatten(1).all(1)).all()):
                wrong = int(rows[run[int((~good).nonzero()[0])]])
                raise Failure(
                    f"{self._shards[shard].where}: {name} of sample {wrong} hold NaN or infinite numbers; make it again"
                )
            found = torch.empty((len(rows), *values.shape[1:])) if found is None else found
            found[torch.from_numpy(run)] = values
        return torch.empty((0, *self._shards[0].shapes[name][1:])) if found is None else found

    def _all_labels(self) -> Array:
        found = []
        for shard, opened in zip(self._shards, self._open, strict=True):
            with parsing(f"{shard.where} cannot be read"):
                labels = opened().get_tensor(LABELS).long()
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) <= MAX_LABEL:
                raise UserError(
                    f"{shard.where}: labels {int(labels.min())}..{int(labels.max())}; 0..{MAX_LABEL:,} are allowed"
                )
            found.append(labels.numpy())
        return np.concatenate(found)


def _refuse_other_set(first: _Shard, shard: _Shard) -> None:
    """UserError for a shard whose tensors have other names or shapes than those of the first."""
    if differing := sorted(shard.names ^ first.names):
        raise UserError(
            f"{shard.where} and {first.where} hold different tensors ({', '.join(differing)}); shards of one set are "
            "needed"
        )
    for name, shape in shard.shapes.items():
        if shape[1:] != first.shapes[name][1:]:
            given, wanted = (_times(each[1:]) for each in (shape, first.shapes[name]))
            raise UserError(
                f"{shard.where}: {name} of {given}, those of {first.where} are {wanted}; shards of one set are needed"
            )


def _names_of(shard: _Shard, ending: str) -> dict[str, str]:
    """Return the name of the tensor of each kind that a shard holds."""
    named = {kind: [f"{name}{ending}" for name in names] for kind, names in CALLED.items()}
    return {kind: next(n for n in names if n in shard.names) for kind, names in named.items() if shard.names & {*names}}


def is_shard(path: Path) -> bool:
    """Return whether a file is a safetensors file of latents."""
    try:
        return path.suffix == ".safetensors" and "latents" in open_safetensors(path).keys()  # noqa: SIM118  (not a dict)
    except UserError:
        return False


def _look(path: Path, opened: Any) -> _Shard:
    """Return what a shard holds; UserError where its tensors do not belong together."""
    where, names = printable(path), frozenset(opened.keys())
    if "latents" not in names:
        raise UserError(f"{where} has no latents (it holds {', '.join(sorted(names)[:5])}); move it out of the folder")
    axes = {
        f"{name}{ending}": AXES[kind] for kind, called in CALLED.items() for name in called for ending in ("", "_flip")
    }
    read = sorted(names & {*axes, LABELS})
    shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in read}
    count = (*shapes["latents"], 0)[0]
    for name, shape in shapes.items():
        dtype = opened.get_slice(name).get_dtype()
        wanted, kinds = ("whole numbers", WHOLE) if name == LABELS else (f"floats of {axes[name]} axes", FLOATS)
        if len(shape) != axes.get(name, 1) or dtype not in kinds or shape[0] != count:
            raise UserError(
                f"{where}: {name} are {dtype} {list(shape)} for {count} latents; expected {wanted}, one row for each"
            )
    _check_size(where, opened.metadata() or {}, count)
    return _Shard(path, shapes)


def _check_size(where: str, metadata: Mapping[str, str], count: int) -> None:
    declared = metadata.get("total_size", str(count))
    if declared != str(count):
        raise UserError(f"{where} declares {declared[:20]} samples and holds {count}; write it again")


def statistics_scale(path: Path, channels: int) -> LatentScale:
    """Return (z - mean) / std of a file of statistics; UserError where it is of other latents."""
    where, content = printable(path), read_file(path, kind="file of latents' statistics")
    if not isinstance(content, dict) or not {"mean", "std"} <= set(content):
        raise UserError(f"{where}: expected mean and std of the latents' channels")
    found = []
    for key in ("mean", "std"):
        values = content[key]
        if not isinstance(values, Tensor) or values.numel() != channels:
            given = f"{values.numel()} numbers" if isinstance(values, Tensor) else type(values).__name__
            raise UserError(f"{where}: {key} has {given}, the latents have {channels} channels; it is of other latents")
        numbers = values.detach().double().flatten()
        if not bool(torch.isfinite(numbers).all()) or (key == "std" and not bool((numbers > 0).all())):
            raise UserError(f"{where}: {key} must be finite{' and above 0' if key == 'std' else ''}; write it again")
        found.append(numbers.tolist())
    mean, std = found
    return LatentScale(scale=tuple(1 / each for each in std), shift=tuple(mean))


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
