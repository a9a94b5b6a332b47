"""Uncertainty of a similarity: standard error from half-samples, and a permutation baseline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from repa_eval.runtime.seeding import permutation

Array = np.ndarray[Any, Any]
Metric = Callable[[Array, Array], float]
ROUNDS = 40


def half_sample_error(metric: Metric, x: Array, y: Array, *, seed: int = 0, rounds: int = ROUNDS) -> float:
    """Return the standard error of metric(x, y), x (N, D1) and y (N, D2): its spread over random halves of the samples.

    The delete-half jackknife (Shao and Wu 1989): for a statistic whose variance falls as 1/n, the variance over half
    samples is that of the whole one. A bootstrap would put the same image in twice, its own nearest neighbour.
    """
    values = []
    for number in range(rounds):
        rows = permutation(len(x), seed, "half samples", number).numpy()[: len(x) // 2]
        values.append(metric(x[rows], y[rows]))
    return float(np.std(values, ddof=1))


def permutation_baseline(
    metric: Metric, x: Array, y: Array, *, seed: int = 0, rounds: int = ROUNDS
) -> tuple[float, float]:
    """Return (mean, standard deviation) of metric(x, y) with the rows of y permuted: what unrelated pairs score."""
    stream = "torn pairs"  # names the random stream of numbers already published: keep it
    orders = (permutation(len(y), seed, stream, number).numpy() for number in range(rounds))
    values = [metric(x, y[order]) for order in orders]
    return float(np.mean(values)), float(np.std(values, ddof=1))
