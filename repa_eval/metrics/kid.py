"""Kernel distance (KID where the features are Inception's): squared MMD with (x.y / D + 1)^3, mean over subsets.

Binkowski et al. 2018 (arXiv 1801.01401). Subsets of 1000, 100 of them, as in torch-fidelity, clean-fid and dgm-eval.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from repa_eval.errors import UserError
from repa_eval.interfaces.metric import sample_metric
from repa_eval.metrics.shared.checks import Array, as_array, same_width
from repa_eval.metrics.shared.mmd import Kernel, polynomial, subset_estimates

SUBSETS, SIZE = 100, 1000
TORCH_FIDELITY_SEED, CLEAN_SEED = 2020, 0


def few(n: int, _width: int) -> str | None:
    """Return what is to be said of n samples, None where they fill a subset."""
    return f"n={n} is below the {SIZE} samples of a subset: kernel distances of smaller subsets" if n < SIZE else None


@sample_metric(
    "kid",
    needs="features",
    gives=("kid",),
    warns=few,
    definition="unbiased squared MMD, kernel (x.y / D + 1)^3, mean over 100 subsets of 1000 (torch-fidelity's draws)",
    range="about 0 and more, lower is closer",
    better="lower",
    meaning="kernel distance of the features, an unbiased estimate from subsets",
)
def kid(real: ArrayLike, fake: ArrayLike, *, seed: int = TORCH_FIDELITY_SEED, device: str = "cpu") -> dict[str, float]:
    """Return {"kid": mean over subsets} of features real (N, D) and fake (M, D), and its standard error.

    The error is the spread of the subsets scaled from their size to that of the sets; it is left out where a subset
    is a whole set, whose draws do not spread. UserError: fewer than 2 rows, unequal D.
    """
    values = kid_subsets(real, fake, seed=seed, device=device)
    n = min(len(as_array(real)), len(as_array(fake)))
    found = {"kid": float(values.mean())}
    if n >= 2 * SIZE:
        found["kid_stderr"] = float(values.std()) * math.sqrt(SIZE / n)
    return found


def kid_subsets(
    real: ArrayLike,
    fake: ArrayLike,
    *,
    subsets: int = SUBSETS,
    size: int = SIZE,
    seed: int = TORCH_FIDELITY_SEED,
    real_first: bool = False,
    kernel: Kernel | None = None,
    device: str = "cpu",
) -> Array:
    """Return the unbiased squared MMD of each subset, (subsets,), of min(size, N, M) samples of both sets.

    Indices come from RandomState(seed).choice without replacement, per subset those of fake and then those of real:
    torch-fidelity with seed 2020, and clean-fid after np.random.seed(seed). real_first: the other way (dgm-eval).
    """
    first, second = same_width(real, fake, at_least=2)
    if subsets < 1 or size < 2:
        raise UserError(f"{subsets} subsets of {size}: at least one subset of 2 samples is needed")
    size, draw = min(size, len(first), len(second)), np.random.RandomState(seed)
    order = (first, second) if real_first else (second, first)
    drawn = [[draw.choice(len(side), size, replace=False) for side in order] for _ in range(subsets)]
    rows = np.array(drawn, dtype=np.int64)  # (subsets, 2, size)
    return subset_estimates(*order, (rows[:, 0], rows[:, 1]), kernel or polynomial(), device=device)
