"""Random numbers by (seed, stream, index) alone: the same for any process count, batch size or restart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def derive(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on every part and on nothing else."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """Return a CPU generator seeded by `derive(*parts)`."""
    return torch.Generator().manual_seed(derive(*parts))


def generators(seed: int, stream: str, indices: Iterable[int]) -> list[torch.Generator]:
    """Return one CPU generator per sample index."""
    return [generator(seed, stream, int(index)) for index in indices]


def normal(gens: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """Return standard normal draws, float32, (len(gens), *shape), row i from generator i."""
    rows = torch.empty((len(gens), *shape))
    for row, generator in zip(rows.unbind(0), gens, strict=True):
        row.normal_(generator=generator)  # torch.randn's numbers, without a copy
    return rows


def uniform(gens: Sequence[torch.Generator], shape: Sequence[int] = ()) -> Tensor:
    """Return uniform draws in [0, 1), float32, (len(gens), *shape), row i from generator i."""
    rows = torch.empty((len(gens), *shape))
    for row, generator in zip(rows.unbind(0), gens, strict=True):
        row.uniform_(generator=generator)
    return rows


def integers(gens: Sequence[torch.Generator], high: int) -> Tensor:
    """Return integer draws in [0, high), int64, (len(gens),), entry i from generator i."""
    return torch.stack([torch.randint(high, (), generator=g) for g in gens])


def permutation(size: int, *parts: int | str) -> Tensor:
    """Return a permutation of range(size), int64, that depends on `parts` alone."""
    return torch.randperm(size, generator=generator(*parts))
