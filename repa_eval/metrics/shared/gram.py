"""A centred Gram matrix of which only blocks of rows ever exist, and its HSIC with another one."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from repa_eval.metrics.shared import kernels

if TYPE_CHECKING:
    from torch import Tensor


class Gram:
    """The kernel matrix K (N, N) of centred features (N, D), float64, on their device.

    width: of the rbf kernel exp(-|u - v|^2 / (2 width^2)); None for inner products. unbiased: the diagonal is left out.
    """

    def __init__(self, values: Tensor, *, width: float | None, unbiased: bool) -> None:
        self.values = values
        self.width = width
        self.unbiased = unbiased

    def hsic(self, other: Gram) -> float:
        """Return the HSIC with another matrix of the same samples, biased or unbiased as both are."""
        across = float(self.sums @ other.sums)  # both are symmetric
        sums = (float(self.sums.sum()), float(other.sums.sum()))
        return kernels.hsic(self._inner(other), (across, across), sums, len(self.values), unbiased=self.unbiased)

    @cached_property
    def own(self) -> float:
        """The HSIC with itself."""
        return self.hsic(self)

    @cached_property
    def squares(self) -> Tensor:
        """Squared lengths of the rows (N,)."""
        return self.values.square().sum(dim=1)

    @cached_property
    def sums(self) -> Tensor:
        """Row sums of K (N,); those of centred inner products are 0, less the diagonal where it is left out."""
        import torch

        if self.width is None:
            return -self.squares if self.unbiased else torch.zeros_like(self.squares)
        return torch.cat([self.block(rows).sum(dim=1) for rows in _blocks(self)])

    def block(self, rows: slice) -> Tensor:
        """Return K[rows] (rows, N)."""
        block = self.values[rows] @ self.values.T
        if self.width is not None:
            block = block.mul_(-2.0).add_(self.squares).add_(self.squares[rows, None]).clamp_(min=0.0)
            block = block.div_(-2.0 * self.width**2).exp_()
        if self.unbiased:
            block.diagonal(rows.start).zero_()
        return block

    def _inner(self, other: Gram) -> float:
        """Return the sum of K * L: through D x D products where that is the shorter way and the kernels are linear."""
        n, p, q = len(self.values), self.values.shape[1], other.values.shape[1]
        if self.width is None and other.width is None and p * q <= n * (p + q):
            sum_of_all = float((self.values.T @ other.values).square().sum())
            return sum_of_all - float(self.squares @ other.squares) if self.unbiased else sum_of_all
        total = 0.0
        for rows in _blocks(self):
            K = self.block(rows)
            total += float((K * (K if other is self else other.block(rows))).sum())
        return total


def _blocks(gram: Gram) -> list[slice]:
    n = len(gram.values)
    return list(kernels.row_blocks(n, n))
