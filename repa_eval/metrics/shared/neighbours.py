"""The k nearest rows of every row by inner product, found once per side and kept with their products."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse

from repa_eval.metrics.shared import kernels
from repa_eval.metrics.shared.checks import Array, neighbour_count
from repa_eval.metrics.shared.prepared import Prepared, constant, paired, prepare

SPARE = 8  # further candidates of a search in float32, put in order and cut off by products in float64


@dataclass(frozen=True)
class Neighbours:
    """The k nearest rows of each of N rows, most similar first."""

    indices: Array  # (N, k)
    products: Array  # (N, k), inner products with these rows in float64

    def gram(self) -> sparse.csr_matrix:
        """Return the Gram matrix (N, N) masked by the lists: k entries a row, zero elsewhere."""
        n, k = self.indices.shape
        starts = np.arange(0, n * k + 1, k)
        return sparse.csr_matrix((self.products.ravel(), self.indices.ravel(), starts), shape=(n, n))


def neighbours(x: ArrayLike | Prepared, *, k: int, with_self: bool = False) -> Neighbours:
    """Return the k nearest rows of every row of x (N, D) by raw inner product; a row is not its own unless `with_self`.

    The search is in the dtype of x, the products and the order of the lists are those of float64. Memory O(N k).
    UserError: N <= k, k < 1, NaN or infinity.
    """
    side = prepare(x, name="x")
    neighbour_count(k, len(side))
    return side.once(("neighbours", k, with_self), lambda: _found(side, k=k, with_self=with_self))


def neighbour_lists(x: ArrayLike | Prepared, y: ArrayLike | Prepared, *, k: int) -> tuple[Array, Array] | float:
    """Return the neighbours (N, k) in x (N, D1) and in y (N, D2), self excluded; NaN with its reason instead of lists.

    Among equal rows any choice of neighbours would be arbitrary. UserError: as `neighbours`, unequal N.
    """
    first, second = paired(x, y)
    neighbour_count(k, len(first))
    nan = constant(first, second)
    if nan is not None:
        return nan
    return neighbours(first, k=k).indices, neighbours(second, k=k).indices


def _found(side: Prepared, *, k: int, with_self: bool) -> Neighbours:
    x = side.values
    spare = SPARE if x.dtype == np.float32 else 0
    candidates = min(k + spare, len(x) - (not with_self))
    indices = np.sort(kernels.nearest(x, k=candidates, with_self=with_self, device=side.device), axis=1)
    products = _products(x, indices, side.device)
    order = np.argsort(-products, axis=1, kind="stable")[:, :k]  # of equal products the lower index first
    return Neighbours(np.take_along_axis(indices, order, axis=1), np.take_along_axis(products, order, axis=1))


def _products(x: Array, columns: Array, device: str) -> Array:
    """Return the inner products (N, k) of each row of x (N, D) with the rows in its line of `columns`, in float64."""
    import torch

    values, places = (
        torch.from_numpy(np.require(x, requirements=["C", "W"])).to(device),
        torch.from_numpy(columns).to(device),
    )
    k = columns.shape[1]
    dense = 8 * k > len(x)  # where most pairs are wanted, one product of all of them is the shorter way
    wide = values.double() if dense else values
    found = torch.empty(columns.shape, dtype=torch.float64)
    for rows in kernels.row_blocks(len(x), len(x) if dense else k * x.shape[1]):
        if dense:
            found[rows] = torch.gather(wide[rows] @ wide.T, 1, places[rows]).cpu()
        else:
            others = values[places[rows]].double()  # (block, k, D)
            found[rows] = torch.bmm(others, values[rows].double()[:, :, None])[:, :, 0].cpu()
    products: Array = found.numpy()
    return products
