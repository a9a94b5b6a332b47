"""Kernel distance over all pairs: KID without the noise of its subsets, and with a standard error by jackknife."""

from __future__ import annotations

from numpy.typing import ArrayLike

from repa_eval.interfaces.metric import sample_metric
from repa_eval.metrics.shared.checks import same_width
from repa_eval.metrics.shared.mmd import kernel_sums, polynomial


@sample_metric(
    "kid_unbiased",
    needs="features",
    gives=("kid_unbiased",),
    definition="unbiased squared MMD of all samples, kernel (x.y / D + 1)^3: what KID's subsets estimate",
    range="about 0 and more, lower is closer",
    better="lower",
    meaning="kernel distance of the features, an unbiased estimate from all samples",
)
def kid_unbiased(real: ArrayLike, fake: ArrayLike, *, device: str = "cpu") -> dict[str, float]:
    """Return {"kid_unbiased": value} of features real (N, D) and fake (M, D), and its standard error from 3 rows on.

    Memory is O(N + M); the work is that of N M + N^2 / 2 + M^2 / 2 products.
    """
    first, second = same_width(real, fake, at_least=2)
    sums = kernel_sums(first, second, polynomial(), device=device)
    found = {"kid_unbiased": sums.unbiased()}
    if min(len(first), len(second)) > 2:
        found["kid_unbiased_stderr"] = sums.unbiased_stderr()
    return found
