"""CMMD: squared MMD of CLIP's image embeddings, Gaussian kernel, times 1000 (Jayasumana et al. 2024, 2401.09603)."""

from __future__ import annotations

from numpy.typing import ArrayLike

from repa_eval.interfaces.metric import sample_metric
from repa_eval.metrics.shared.checks import same_width
from repa_eval.metrics.shared.kernels import normalise_rows
from repa_eval.metrics.shared.mmd import kernel_sums, rbf

SIGMA, SCALE = 10.0, 1000.0


@sample_metric(
    "cmmd",
    needs="features",
    gives=("cmmd",),
    extractor="clip",
    definition="1000 x biased squared MMD of rows of length 1, kernel exp(-|x - y|^2 / (2 10^2)), on CLIP ViT-L/14 336",
    range="0 and more, lower is closer",
    better="lower",
    meaning="maximum mean discrepancy of CLIP features",
)
def cmmd(real: ArrayLike, fake: ArrayLike, *, sigma: float = SIGMA, device: str = "cpu") -> dict[str, float]:
    """Return {"cmmd": value} of embeddings real (N, D) and fake (M, D), and its standard error (jackknife).

    In float64: on rows of length 1 the kernel is within 2 % of 1, and float32 would lose three digits.
    """
    first, second = same_width(real, fake, at_least=2)
    wide = [normalise_rows(side.astype("float64")) for side in (first, second)]
    sums = kernel_sums(wide[0], wide[1], rbf(sigma), device=device)
    return {"cmmd": SCALE * sums.biased(), "cmmd_stderr": SCALE * sums.biased_stderr()}
