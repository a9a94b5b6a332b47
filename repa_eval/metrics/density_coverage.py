"""Density and coverage (Naeem et al. 2020, arXiv 2002.09797), and the other three numbers of the same balls.

Euclidean balls about the real points, each reaching to the k-th nearest other real point; a point on the border is
outside (<), as in the authors' prdc and in dgm-eval. Improved precision and recall by that rule, and realism
(Kynkaanniemi et al. 2019), come from the same search.
"""

from __future__ import annotations

import math

from numpy.typing import ArrayLike

from repa_eval.interfaces.metric import sample_metric
from repa_eval.metrics.shared.manifold import balls

LEAST = 1000


def few(n: int, _width: int) -> str | None:
    """Return what is to be said of n samples, None where they are enough."""
    return f"n={n} is below {LEAST}: neighbourhoods of so few samples are coarse" if n < LEAST else None


@sample_metric(
    "density_coverage",
    needs="features",
    gives=("density", "coverage"),
    warns=few,
    definition="density: mean number of real k-NN balls (k = 5, <) about a sample, over k; coverage: share of real"
    " balls that hold a sample",
    range="density 0 and more, 1 for equal distributions; coverage 0..1, higher is better",
    better="higher",
    meaning={
        "density": "how densely the real images surround the generated ones; 1 for equal distributions",
        "coverage": "share of real images that have a generated one in their neighbourhood",
    },
)
def density_coverage(real: ArrayLike, fake: ArrayLike, *, k: int = 5, device: str = "cpu") -> dict[str, float]:
    """Return {"density": ..., "coverage": ...} of features real (N, D) and fake (M, D), with their standard errors."""
    found = prdc(real, fake, k=k, device=device)
    return {name: value for name, value in found.items() if name.startswith(("density", "coverage"))}


def prdc(real: ArrayLike, fake: ArrayLike, *, k: int = 5, device: str = "cpu") -> dict[str, float]:
    """Return precision, recall, density, coverage by the rule of prdc, each with its standard error.

    The errors count the sampling of the set that is averaged over (fake for precision and density, real for recall
    and coverage), the other set being given. UserError: k < 1, N <= k or M <= k, unequal D, NaN or infinity.
    """
    seen = balls(real, fake, k=k, device=device)
    averaged = {
        "precision": seen.holding > 0,
        "recall": seen.recalled,
        "density": seen.holding / k,
        "coverage": seen.covered,
    }
    means = {name: float(values.mean()) for name, values in averaged.items()}
    errors = {f"{name}_stderr": float(values.std()) / math.sqrt(len(values)) for name, values in averaged.items()}
    return means | errors
