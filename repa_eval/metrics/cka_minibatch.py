"""Minibatch CKA (Nguyen et al. 2021, arXiv 2010.15327): unbiased HSICs summed over batches, and only then the ratio.

In expectation it does not depend on the batch size, and no more than a batch is ever held: for all pairs of layers of a
stream too large to keep. Equal to cka-pytorch 1.1.3 where that is stable.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from repa_eval.errors import UserError
from repa_eval.interfaces.metric import alignment_metric
from repa_eval.metrics.shared import kernels
from repa_eval.metrics.shared.checks import Array, is_constant, matrix, undefined
from repa_eval.metrics.shared.hsic_matrix import hsic_matrix, ratios
from repa_eval.metrics.shared.prepared import constant, paired

LEAST = 4  # samples that the unbiased HSIC needs


class MinibatchCKA:
    """Accumulates the linear HSIC_1 of all pairs of layers over batches; `matrix` is their CKA."""

    def __init__(self) -> None:
        self.skipped = 0  # samples in batches of fewer than 4
        self._sums: tuple[Array, Array, Array] | None = None

    def update(self, xs: Sequence[ArrayLike], ys: Sequence[ArrayLike]) -> None:
        """Add a batch: layers xs (n, D_i) and ys (n, D_j) of the same n samples; n < 4 is counted and left out.

        UserError: unequal n, NaN or infinity, another number of layers than before.
        """
        first = [_centred(f"xs[{i}]", x) for i, x in enumerate(xs)]
        second = [_centred(f"ys[{i}]", y) for i, y in enumerate(ys)]
        sizes = {len(layer) for layer in (*first, *second)}
        if len(sizes) != 1 or not first or not second:
            raise UserError(f"a batch needs layers on both sides, all of the same samples; given: {sorted(sizes)} rows")
        if len(first[0]) < LEAST:
            self.skipped += len(first[0])
            return
        added = hsic_matrix(first, second, unbiased=True)
        if self._sums is None:
            self._sums = added
        elif self._sums[0].shape != added[0].shape:
            raise UserError(f"this batch has {added[0].shape} layers, those before had {self._sums[0].shape}")
        else:
            self._sums = tuple(a + b for a, b in zip(self._sums, added, strict=True))  # type: ignore[assignment]

    def matrix(self, *, epsilon: float = 0.0) -> Array:
        """Return the CKA (Lx, Ly) of all batches so far; NaN for layers without variance.

        epsilon: stands inside the root, as in cka-pytorch, whose default 1e-4 makes the value depend on the scale of
        the features. UserError: no batch of 4 samples yet.
        """
        if self._sums is None:
            raise UserError("there is no batch of at least 4 samples yet")
        return ratios(*self._sums, epsilon=epsilon)


@alignment_metric(
    "cka_minibatch",
    definition="linear CKA, unbiased HSICs summed over batches of 256 before the ratio",
    range="about 0..1, 1 = same up to rotation and scale; slightly below 0 is possible",
    permutation=False,
    meaning="centred kernel alignment of hidden states and teacher features, summed over batches",
)
def cka_minibatch(x: ArrayLike, y: ArrayLike, *, batch_size: int = 256) -> float:
    """Return the minibatch CKA of x (N, D1) and y (N, D2) over consecutive batches; a last one below 4 is left out.

    NaN for constant features. UserError: N < 4, batch_size < 4, unequal N, NaN or infinity.
    """
    first, second = paired(x, y, at_least=LEAST)
    if batch_size < LEAST:
        raise UserError(f"batch_size={batch_size}: the unbiased HSIC needs batches of at least {LEAST} samples")
    nan = constant(first, second)
    if nan is not None:
        return nan
    sums = MinibatchCKA()
    scaled = [kernels.near_one(side.values) for side in (first, second)]
    for start in range(0, len(first), batch_size):
        rows = slice(start, start + batch_size)
        sums.update([scaled[0][rows]], [scaled[1][rows]])
    value = float(sums.matrix()[0, 0])
    return undefined("the features are constant within every batch") if np.isnan(value) else value


def _centred(name: str, x: ArrayLike) -> Array:
    """Return a layer less its mean; twice, so that the rounding of a large mean does not stay behind.

    In its dtype, or float64 where single rows outweigh the others. A layer that is constant within the batch gives
    exact zeros, not the noise of its rounding.
    """
    values = matrix(name, x)
    if kernels.has_long_rows(values - values.mean(axis=0)):
        values = values.astype(np.float64)
    weights = np.full(len(values), 1.0 / len(values), dtype=values.dtype)
    centred: Array = values - weights @ values
    centred -= weights @ centred
    if np.vdot(centred, centred) <= 1e-8 * np.vdot(values, values) and is_constant(values):
        centred.fill(0.0)
    return centred
