"""GMem's memory bank: teacher features of training images, one snippet each, that a network is conditioned on.

Stored raw, normalised at every use (arXiv 2412.08781). The compressed form is a truncated SVD of the centred bank.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from repa_eval.errors import UserError

BLOCK = 4096  # rows that are touched at once, whatever the size of the bank
FORMS = ("full", "svd")
LEAST_SPREAD = 1e-6  # of the largest singular value; below it a direction is rounding


class Bank(ABC):
    """Snippets by row. width: entries of one. record: where they come from (teacher, weights, data, count)."""

    form: str
    record: Mapping[str, Any]

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def width(self) -> int:
        """Entries of a snippet, D."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return what is stored, by the names of its files."""

    @abstractmethod
    def read(self, rows: Tensor) -> Tensor:
        """Return raw snippets (B, D), float32, of row numbers (B,)."""

    @abstractmethod
    def added(self, snippet: Tensor) -> Bank:
        """Return the bank with snippet (D,) as a new last row."""

    @abstractmethod
    def added_between(self, first: int, second: int, alpha: float) -> Bank:
        """Return the bank with a new last row: alpha x row `first` + (1 - alpha) x row `second`, raw.

        alpha weighs the FIRST row, as in the published classes; `interpolate` has the order of the published scripts.
        """

    def conditions(self, rows: Tensor) -> Tensor:
        """Return snippets (B, D) of length 1, float32: what a network is given."""
        return F.normalize(self.read(rows), dim=1)

    def row(self, index: int) -> Tensor:
        """Return one raw snippet (D,); UserError if the bank has no such row."""
        if not 0 <= index < len(self):
            raise UserError(f"snippet {index}: this memory bank has rows 0..{len(self) - 1}")
        return self.read(torch.tensor([index]))[0]

    @abstractmethod
    def described(self, record: Mapping[str, Any]) -> Bank:
        """Return the bank with another record."""

    @property
    def nbytes(self) -> int:
        """Bytes of what is stored."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def _fitting(self, snippet: Tensor) -> Tensor:
        if snippet.shape != (self.width,):
            raise UserError(f"a snippet of shape {tuple(snippet.shape)}: this memory bank holds ({self.width},)")
        if not snippet.isfinite().all():
            raise UserError("a snippet that is not finite cannot be added to a memory bank")
        return snippet.float()


@dataclass(frozen=True)
class FullBank(Bank):
    """Every snippet as it is. snippets: (N, D), perhaps mapped from a file."""

    snippets: Tensor
    record: Mapping[str, Any] = field(default_factory=dict)
    form = "full"

    def __len__(self) -> int:
        return len(self.snippets)

    @property
    def width(self) -> int:
        """Entries of a snippet, D."""
        return self.snippets.shape[1]

    def tensors(self) -> dict[str, Tensor]:
        """Return the one tensor."""
        return {"snippets": self.snippets}

    def read(self, rows: Tensor) -> Tensor:
        """Return raw snippets (B, D), float32, of row numbers (B,)."""
        return self.snippets[rows.to(self.snippets.device)].float()

    def added(self, snippet: Tensor) -> FullBank:
        """Return the bank with snippet (D,) as a new last row."""
        new = self._fitting(snippet).to(self.snippets)
        return replace(self, snippets=torch.cat([self.snippets, new[None]]))

    def added_between(self, first: int, second: int, alpha: float) -> FullBank:
        """Return the bank with alpha x row `first` + (1 - alpha) x row `second` as a new last row."""
        return self.added(alpha * self.row(first) + (1 - alpha) * self.row(second))

    def described(self, record: Mapping[str, Any]) -> FullBank:
        """Return the bank with another record."""
        return replace(self, record=record)


@dataclass(frozen=True)
class SVDBank(Bank):
    """The centred bank U S V^T cut to d directions: C = U sqrt(S) (N, d), M = V sqrt(S) (D, d), S (d,), mean (D,).

    A snippet is read as C M^T + mean.
    """

    C: Tensor
    M: Tensor
    S: Tensor
    mean: Tensor
    record: Mapping[str, Any] = field(default_factory=dict)
    form = "svd"

    def __len__(self) -> int:
        return len(self.C)

    @property
    def width(self) -> int:
        """Entries of a snippet, D."""
        return len(self.M)

    @property
    def latent_dim(self) -> int:
        """Directions that are kept, d."""
        return self.C.shape[1]

    def tensors(self) -> dict[str, Tensor]:
        """Return the four tensors by their published names."""
        return {"C": self.C, "M": self.M, "S": self.S, "mean": self.mean}

    def read(self, rows: Tensor) -> Tensor:
        """Return raw snippets (B, D), float32, of row numbers (B,)."""
        return self.C[rows.to(self.C.device)].float() @ self.M.float().T + self.mean.float()

    def added(self, snippet: Tensor) -> SVDBank:
        """Return the bank with the projection of snippet (D,) on its directions as a new last row."""
        centred = self._fitting(snippet).to(self.mean.device) - self.mean.float()
        return self._with(centred @ self.M.float() / self.S.float())

    def added_between(self, first: int, second: int, alpha: float) -> SVDBank:
        """Return the bank with alpha x code `first` + (1 - alpha) x code `second` as a new last row."""
        for index in (first, second):
            self.row(index)  # refuses one that is not there
        return self._with(alpha * self.C[first].float() + (1 - alpha) * self.C[second].float())

    def described(self, record: Mapping[str, Any]) -> SVDBank:
        """Return the bank with another record."""
        return replace(self, record=record)

    def _with(self, code: Tensor) -> SVDBank:
        return replace(self, C=torch.cat([self.C, code[None].to(self.C)]))


def of_tensors(tensors: Mapping[str, Tensor], record: Mapping[str, Any] | None = None) -> Bank:
    """Return the bank that `Bank.tensors()` was taken of."""
    form = FullBank if set(tensors) == {"snippets"} else SVDBank
    return form(**tensors, record=dict(record or {}))


def compressed(bank: Bank, latent_dim: int) -> SVDBank:
    """Return the SVD form of a bank with `latent_dim` directions; UserError if the snippets span fewer.

    Sums run in float64 over blocks of BLOCK rows: the result depends neither on memory nor on how the bank was made.
    """
    if latent_dim < 1 or latent_dim > bank.width:
        raise UserError(f"latent_dim {latent_dim}: snippets of {bank.width} entries have 1..{bank.width} directions")
    mean = torch.stack([part.sum(0) for part in _blocks(bank)]).sum(0) / len(bank)
    gram = torch.zeros(bank.width, bank.width, dtype=torch.float64)
    for part in _blocks(bank):
        gram += (part - mean).T @ (part - mean)
    squares, vectors = torch.linalg.eigh(gram)
    S = squares.flip(0).clamp_min(0).sqrt()
    spanned = int((S / S[0] > LEAST_SPREAD).sum())
    if latent_dim > spanned:
        raise UserError(f"latent_dim {latent_dim}: these {len(bank)} snippets span {spanned} directions only")
    S, V = S[:latent_dim], vectors.flip(1)[:, :latent_dim]
    V = V * V.gather(0, V.abs().argmax(0, keepdim=True)).sign()  # either sign is a singular vector
    C = torch.cat([((part - mean) @ V / S.sqrt()).float() for part in _blocks(bank)])
    return SVDBank(C, (V * S.sqrt()).float(), S.float(), mean.float(), bank.record)


def _blocks(bank: Bank) -> Iterator[Tensor]:
    """Yield all raw snippets in order, float64, BLOCK rows at a time."""
    for first in range(0, len(bank), BLOCK):
        yield bank.read(torch.arange(first, min(first + BLOCK, len(bank)))).double()


def difference(bank: Bank, other: Bank) -> dict[str, float]:
    """Return how far `other` is from `bank`, row by row, over the raw snippets.

    relative_error: |other - bank| / |bank|; centred_error: / |bank - its mean|, which is the larger where all snippets
    point the same way; mean_cosine: of a row and its copy.
    """
    mean = torch.stack([part.sum(0) for part in _blocks(bank)]).sum(0) / len(bank)
    wrong = whole = spread = cosines = 0.0
    for a, b in zip(_blocks(bank), _blocks(other), strict=True):
        wrong, whole = wrong + float((a - b).square().sum()), whole + float(a.square().sum())
        spread += float((a - mean).square().sum())
        cosines += float(F.cosine_similarity(a, b, dim=1).sum())
    return {
        "relative_error": (wrong / whole) ** 0.5,
        "centred_error": (wrong / spread) ** 0.5,
        "mean_cosine": cosines / len(bank),
    }
