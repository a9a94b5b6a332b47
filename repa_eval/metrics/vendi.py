"""Vendi score: the effective number of different samples (Friedman and Dieng 2023, arXiv 2210.02410).

exp of the entropy of the eigenvalues of K / N, K the products of rows of length 1. The D x D matrix X^T X / N has the
same eigenvalues but for zeros: O(D^2) memory and no noise of N - D zeros.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import linalg

from repa_eval.errors import UserError
from repa_eval.interfaces.metric import sample_metric
from repa_eval.metrics.shared.checks import Array, matrix
from repa_eval.metrics.shared.kernels import normalise_rows


def few(n: int, width: int) -> str | None:
    """Return what is to be said of n samples, None where they are enough."""
    return f"n={n} is below twice the {width} features: a score of n samples is n at most" if n < 2 * width else None


@sample_metric(
    "vendi",
    needs="features",
    gives=("vendi",),
    warns=few,
    definition="exp of the entropy of the eigenvalues of X X^T / N, rows of length 1: effective number of samples",
    range="1..min(N, D), higher is more diverse; the real images are not used",
    better="higher",
    meaning="effective number of different samples",
)
def vendi(real: ArrayLike | None, fake: ArrayLike) -> dict[str, float]:
    """Return {"vendi": score} of the features fake (N, D), and its standard error by its influence function."""
    unit = normalise_rows(matrix("fake", fake).astype(np.float64))
    values, vectors = linalg.eigh(unit.T @ unit / len(unit), check_finite=False)
    score = order_score(values, 1.0)
    logs = np.log(np.maximum(values, 1e-300))
    narrow = np.float32  # an error bar needs no more digits, and this product is the longest part
    own = -(np.square(unit.astype(narrow) @ vectors.astype(narrow)) @ logs)  # -x^T log(A) x: its mean is the entropy
    return {"vendi": score, "vendi_stderr": score * float(own.std()) / math.sqrt(len(own))}


def vendi_score(features: ArrayLike, *, q: float = 1.0, normalise: bool = True) -> float:
    """Return the Vendi score of order q (1: Shannon, infinity: largest eigenvalue) of features (N, D).

    normalise False: rows as they come, of length 1 at most. UserError: q < 0.
    """
    wide = matrix("features", features).astype(np.float64)
    return order_score(linalg.eigvalsh(_small_gram(normalise_rows(wide) if normalise else wide)), q)


def _small_gram(x: Array) -> Array:
    product: Array = (x @ x.T if len(x) < x.shape[1] else x.T @ x) / len(x)
    return product


def order_score(values: Array, q: float) -> float:
    """Return exp of the Renyi entropy of order q of eigenvalues that sum to 1."""
    if q < 0:
        raise UserError(f"q={q}: allowed are orders of 0 and more")
    p = values[values > len(values) * np.finfo(np.float64).eps * values.max()]
    if q == 1.0:
        return math.exp(-float((p * np.log(p)).sum()))
    if math.isinf(q):
        return math.exp(-math.log(float(p.max())))
    return math.exp(math.log(float((p**q).sum())) / (1.0 - q))
