"""Maximum mean discrepancy in row blocks: sums of kernel values per sample, from which every estimator follows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from repa_eval.errors import UserError
from repa_eval.metrics.shared.checks import Array
from repa_eval.metrics.shared.kernels import products, row_blocks

LARGE = 100.0  # mean squared entry of a row from which products are taken in float64; Inception's rows have about 0.3
Kernel = Callable[[Tensor, Tensor], Tensor]  # (u (B, D), v (M, D)) -> (B, M) float64


def polynomial(*, degree: int = 3, gamma: float | None = None, coef0: float = 1.0) -> Kernel:
    """Return the kernel (gamma u.v + coef0)^degree; gamma None: 1 / D. Products in the dtype of the features."""

    def kernel(u: Tensor, v: Tensor) -> Tensor:
        return products(u, v).double().mul_(gamma or 1.0 / u.shape[1]).add_(coef0).pow_(degree)

    return kernel


def rbf(sigma: float) -> Kernel:
    """Return exp(-|u - v|^2 / (2 sigma^2)) - 1: the constant drops out of every estimate, its rounding would not."""

    def kernel(u: Tensor, v: Tensor) -> Tensor:
        squares = u.double().square().sum(dim=1)[:, None] + v.double().square().sum(dim=1)
        distances = products(u, v).double().mul_(-2.0).add_(squares).clamp_min_(0.0)
        return distances.div_(-2.0 * sigma**2).expm1_()

    return kernel


@dataclass(frozen=True)
class KernelSums:
    """Sums per sample. xx (n,), yy (m,): over the OTHER samples of the set; xx_self, yy_self: of each with itself;
    xy (n,): over all y; yx (m,): over all x."""

    xx: Array
    yy: Array
    xy: Array
    yx: Array
    xx_self: Array
    yy_self: Array

    def unbiased(self) -> float:
        """Return the estimate without the diagonals of Kxx and Kyy; all pairs of Kxy."""
        return float(self._unbiased(self.xx.sum(), len(self.xx), self.yy.sum(), len(self.yy), self.xy.sum()))

    def biased(self) -> float:
        """Return the V-statistic: mean Kxx + mean Kyy - 2 mean Kxy."""
        return float(self._biased(self._whole_xx(), len(self.xx), self._whole_yy(), len(self.yy), self.xy.sum()))

    def unbiased_stderr(self) -> float:
        """Return the standard error of `unbiased`, by leaving out one sample of either set (jackknife)."""
        (n, m), (a, b, c) = self._sizes(3), (self.xx.sum(), self.yy.sum(), self.xy.sum())
        without_x = self._unbiased(a - 2.0 * self.xx, n - 1, b, m, c - self.xy)
        without_y = self._unbiased(a, n, b - 2.0 * self.yy, m - 1, c - self.yx)
        return _jackknife(without_x, without_y)

    def biased_stderr(self) -> float:
        """Return the standard error of `biased` (jackknife)."""
        (n, m), (a, b, c) = self._sizes(2), (self._whole_xx(), self._whole_yy(), self.xy.sum())
        without_x = self._biased(a - 2.0 * self.xx - self.xx_self, n - 1, b, m, c - self.xy)
        without_y = self._biased(a, n, b - 2.0 * self.yy - self.yy_self, m - 1, c - self.yx)
        return _jackknife(without_x, without_y)

    def _sizes(self, least: int) -> tuple[int, int]:
        n, m = len(self.xx), len(self.yy)
        if min(n, m) < least:
            raise UserError(f"a jackknife needs {least} samples of each set; given are {n} and {m}")
        return n, m

    def _whole_xx(self) -> float:
        return float(self.xx.sum() + self.xx_self.sum())

    def _whole_yy(self) -> float:
        return float(self.yy.sum() + self.yy_self.sum())

    @staticmethod
    def _unbiased(a: Array | float, n: int, b: Array | float, m: int, c: Array | float) -> Array:
        return np.asarray(a / (n * (n - 1)) + b / (m * (m - 1)) - 2.0 * c / (n * m))

    @staticmethod
    def _biased(a: Array | float, n: int, b: Array | float, m: int, c: Array | float) -> Array:
        return np.asarray(a / n**2 + b / m**2 - 2.0 * c / (n * m))


def searched(x: Array, y: Array, device: str) -> tuple[Tensor, Tensor]:
    """Return features x (N, D) and y (M, D) on the device; in float64 where float32 would lose the distance.

    The cubes of large products differ by less than their rounding in float32.
    """
    wide = max(float(np.einsum("nd,nd->n", side, side, dtype=np.float64).max()) / side.shape[1] for side in (x, y))
    dtype = np.float64 if wide > LARGE else x.dtype
    u, v = (torch.from_numpy(np.require(side, dtype, ["C", "W"])).to(device) for side in (x, y))
    return u, v


def kernel_sums(x: Array, y: Array, kernel: Kernel, *, device: str = "cpu") -> KernelSums:
    """Return the sums of a kernel over x (N, D) and y (M, D), in blocks; UserError for fewer than 2 rows."""
    if min(len(x), len(y)) < 2:
        raise UserError(f"a kernel distance needs 2 samples of each set; given are {len(x)} and {len(y)}")
    u, v = searched(x, y, device)
    across, down = torch.zeros(len(u), dtype=torch.float64), torch.zeros(len(v), dtype=torch.float64)
    for rows in row_blocks(len(u), len(v)):
        block = kernel(u[rows], v)  # (block, M)
        across[rows] = block.sum(dim=1).cpu()
        down += block.sum(dim=0).cpu()
    xx, xx_self = _own(u, kernel)
    yy, yy_self = _own(v, kernel)
    return KernelSums(xx, yy, across.numpy(), down.numpy(), xx_self, yy_self)


def subset_estimates(x: Array, y: Array, draws: tuple[Array, Array], kernel: Kernel, *, device: str = "cpu") -> Array:
    """Return the unbiased estimate of each subset, (S,), from features x (N, D) and y (M, D).

    draws: the rows of each subset in x and in y, (S, size) each, none of them twice in a subset. Where the subsets hold
    more pairs than the sets do, each kernel value is computed once and counted by the subsets that contain its pair.
    """
    u, v = searched(x, y, device)
    (subsets, size), pairs = draws[0].shape, len(x) ** 2 / 2 + len(y) ** 2 / 2 + len(x) * len(y)
    if 2 * subsets * size**2 < pairs:
        drawn = zip(*draws, strict=True)
        return np.array([kernel_sums(x[first], y[second], kernel, device=device).unbiased() for first, second in drawn])
    a, b = (_members(rows, len(side)).to(device) for rows, side in zip(draws, (x, y), strict=True))
    between = torch.zeros(subsets, dtype=torch.float64)
    for rows in row_blocks(len(u), len(v)):
        between += ((a[:, rows] @ kernel(u[rows], v)) * b).sum(dim=1).cpu()
    within = (_within(u, a, kernel) + _within(v, b, kernel)) / (size * (size - 1))
    estimates: Array = (within - 2.0 * between / size**2).numpy()
    return estimates


def _members(rows: Array, count: int) -> Tensor:
    """Return (S, count) float64: 1 where a subset, a line of rows (S, size), contains the sample."""
    members = torch.zeros((len(rows), count), dtype=torch.float64)
    return members.scatter_(1, torch.from_numpy(rows), 1.0)


def _within(u: Tensor, members: Tensor, kernel: Kernel) -> Tensor:
    """Return the sums (S,) of the kernel over the ordered pairs of different samples of each subset of u (N, D)."""
    sums = torch.zeros(len(members), dtype=torch.float64)
    for rows in row_blocks(len(u), len(u)):
        block = kernel(u[rows], u[rows.start :])  # symmetric: a pair right of the block's diagonal stands for two
        size = rows.stop - rows.start
        block[:, size:] *= 2.0
        block.diagonal().zero_()
        sums += ((members[:, rows] @ block) * members[:, rows.start :]).sum(dim=1).cpu()
    return sums


def _own(u: Tensor, kernel: Kernel) -> tuple[Array, Array]:
    """Return the sums over the other rows, and the values on the diagonal, of the kernel of u (N, D) with itself."""
    sums, diagonal = torch.zeros(len(u), dtype=torch.float64), torch.zeros(len(u), dtype=torch.float64)
    for rows in row_blocks(len(u), len(u)):
        block = kernel(u[rows], u[rows.start :])  # symmetric: what lies left of the diagonal was seen before
        size = rows.stop - rows.start
        diagonal[rows] = block.diagonal().cpu()
        sums[rows] += block.sum(dim=1).cpu() - diagonal[rows]
        sums[rows.stop :] += block[:, size:].sum(dim=0).cpu()
    return sums.numpy(), diagonal.numpy()


def _jackknife(*sides: Array) -> float:
    return math.sqrt(sum((len(side) - 1) / len(side) * float(np.square(side - side.mean()).sum()) for side in sides))
