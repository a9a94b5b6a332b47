"""What several metrics share: row scaling, Gram matrices, HSIC, and neighbour searches in row blocks.

Sources: minyoungg/platonic-rep @ dcd76ba for the conventions; Song et al. 2012 (JMLR 13) for the unbiased HSIC.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from repa_eval.errors import UserError
from repa_eval.metrics.shared.checks import Array, undefined
from repa_eval.metrics.shared.tile_search import largest_products

if TYPE_CHECKING:
    from torch import Tensor

OFFICIAL_EPS = 1e-6  # platonic-rep adds it to the denominators of CKA and CKNNA
LONG = 16.0  # a squared row length over their mean from which sums in float32 are too coarse
BLOCK_ELEMENTS = 2**21  # size of one block of pairwise values: 8 MB in float32


def normalise_rows(x: Array) -> Array:
    """Return x (N, D) with rows of length 1, in its dtype.

    Rows shorter than 1e-12 of the largest |x| are divided by that (torch: shorter than 1e-12, whatever the scale).
    """
    x = scaled_to_one(x)
    lengths = np.sqrt(np.square(x, dtype=np.float64).sum(axis=1, keepdims=True))  # (N, 1)
    unit: Array = (x / np.maximum(lengths, 1e-12)).astype(x.dtype, copy=False)
    return unit


def scaled_to_one(x: Array) -> Array:
    """Return x (N, D) divided by the power of two next to its largest |x|: no digit changes, no square overflows."""
    largest = float(np.abs(x).max())
    limits = np.finfo(x.dtype)
    power = np.clip(np.frexp(largest)[1], limits.minexp, limits.maxexp - 1) if largest > 0.0 else 0
    scaled: Array = x * np.ldexp(x.dtype.type(1.0), -int(power))
    return scaled


def near_one(x: Array) -> Array:
    """Return x (N, D), `scaled_to_one` only where a product of four of its entries could overflow or vanish."""
    largest, limits = float(np.abs(x).max()), np.finfo(x.dtype)
    safe = float(limits.tiny) ** 0.125 < largest < float(limits.max) ** 0.125
    return x if safe else scaled_to_one(x)


def has_long_rows(x: Array) -> bool:
    """Whether single rows of x (N, D) outweigh the others, so that sums in float32 would lose what these say."""
    squares = np.einsum("nd,nd->n", x, x, dtype=np.float64)
    return bool(squares.max() > LONG * squares.mean())


def remove_outliers(x: Array, *, q: float = 0.95, exact: bool = False) -> Array:
    """Return x (N, ...) clamped to +-threshold, as platonic-rep does before its metrics.

    exact: the threshold is entry int(q * size) of the sorted |x|; otherwise it is the mean over the samples of
    the q quantile of |x| within a sample. q = 1 changes nothing. UserError: q outside 0..1.
    """
    if not 0.0 <= q <= 1.0:
        raise UserError(f"q={q}: a quantile lies between 0 and 1")
    if q == 1.0:
        return x
    size = np.abs(x)
    if exact:
        place = int(q * x.size)
        threshold = np.partition(size, place, axis=None)[place]
    else:
        threshold = np.quantile(size.reshape(len(x), -1).astype(np.float64), q, axis=1).mean()
    return np.clip(x, -threshold, threshold).astype(x.dtype, copy=False)


def linear_gram(x: Array, rows: slice = slice(None)) -> Array:
    """Return the inner products of x[rows] with all of x (N, D): (rows, N)."""
    product: Array = x[rows] @ x.T
    return product


def hsic(
    product: float, across: tuple[float, float], sums: tuple[float, float], n: int, *, unbiased: bool = False
) -> float:
    """Return the HSIC of two n x n matrices K and L from five sums; neither matrix need be symmetric.

    product: tr(K L) = sum of K * L^T (elementwise). across: 1'KL1 and 1'LK1. sums: 1'K1 and 1'L1.
    Biased: tr(K H L H) with H = I - 11'/n, as platonic-rep not divided by (n - 1)^2. Unbiased: Song et al. 2012,
    eq. 5, which takes K and L with zero diagonals and needs n >= 4.
    """
    if unbiased:
        centre = sums[0] * sums[1] / ((n - 1) * (n - 2)) - 2.0 * across[0] / (n - 2)
        return (product + centre) / (n * (n - 3))
    return product - (across[0] + across[1]) / n + sums[0] * sums[1] / n**2


def ratio(xy: float, xx: float, yy: float, *, eps: float) -> float:
    """Return xy / (sqrt(xx * yy) + eps); NaN with its reason, without a warning, where that does not exist."""
    if np.sign(xx) * np.sign(yy) < 0.0:  # the unbiased HSIC of a masked matrix with itself may be negative
        return undefined("the two self-HSICs under the root have different signs: too few samples")
    below = float(np.sqrt(abs(xx)) * np.sqrt(abs(yy))) + eps
    return xy / below if below > 0.0 else undefined("a self-HSIC is 0: the kernel sees no differences between samples")


def common_square(x: Array) -> float:
    """Return the squared length that all rows of x (N, D) have; 0 where they differ by more than one in a thousand.

    platonic-rep's 1e-6 in the denominator of CKNNA supposes rows of length 1, which its callers make; there it moves
    CKNNA by up to 2e-4, so that equality with the published numbers needs it. As an absolute number it depends on the
    scale of the features. Therefore rows of one common length a (for y: b) count with 1e-6 a^2 b^2, the official value
    of the same rows at length 1; rows of different lengths have no unit to which it could refer: 0.
    """
    lengths = np.einsum("nd,nd->n", x, x, dtype=np.float64)  # squared, (N,)
    return 0.0 if np.ptp(lengths) > 1e-3 * lengths.max() else float(lengths.mean())


def nearest(x: Array, *, k: int, with_self: bool = False, device: str = "cpu") -> Array:
    """Return the indices (N, k) of the rows of x (N, D) with the largest inner product, most similar first.

    A row is not its own neighbour unless `with_self`. Searches on `device` and in the dtype of x, in row blocks:
    memory is O(N * block), never N x N. Of <u, v> a row's ranking needs <u, v - m> only, m the mean: with u = c + m
    that is <c, v - m> + <m, v - m>, whose last term is taken in float64. Thus a large mean costs no digits.
    """
    wide = scaled_to_one(x.astype(np.float64))
    mean = wide.mean(axis=0)
    wide -= mean
    offsets, rest = (wide @ mean).astype(x.dtype), wide.astype(x.dtype, copy=False)  # <m, v - m> (N,), c (N, D)
    del wide
    if device == "cpu":
        return largest_products(rest, offsets, k=k, with_self=with_self)
    import torch

    there, shifts = torch.from_numpy(rest).to(device), torch.from_numpy(offsets).to(device)
    found = torch.empty((len(x), k), dtype=torch.int64)
    for rows in row_blocks(len(x), len(x)):
        similar = torch.addmm(shifts, there[rows], there.T)  # (block, N)
        if not with_self:
            similar.diagonal(rows.start).fill_(-torch.inf)
        found[rows] = torch.topk(similar, k, dim=1).indices.cpu()
    indices: Array = found.numpy()
    return indices


def products(u: Tensor, v: Tensor) -> Tensor:
    """Return the inner products u v^T (N, M) of u (N, D) and v (M, D), in their dtype and on their device.

    On the CPU by numpy, whose OpenBLAS multiplies twice as fast as torch's MKL on AMD's processors.
    """
    import torch

    return torch.from_numpy(u.numpy() @ v.numpy().T) if u.device.type == "cpu" else u @ v.T


def squared_distances(u: Array, v: Array) -> Array:
    """Return |u_i - v_j|^2 (N, M) of u (N, D) and v (M, D), at least 0. Centre both first: a mean costs digits."""
    squares = np.einsum("nd,nd->n", u, u)[:, None] + np.einsum("md,md->m", v, v)[None, :]
    squares -= 2.0 * (u @ v.T)
    np.maximum(squares, 0.0, out=squares)
    distances: Array = squares
    return distances


def row_blocks(n: int, width: int) -> Iterator[slice]:
    """Yield slices that cover n rows, each of so few rows that a (rows, width) block stays near BLOCK_ELEMENTS."""
    step = max(1, BLOCK_ELEMENTS // max(width, 1))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))
