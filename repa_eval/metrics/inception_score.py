"""Inception score: exp of the mean KL divergence from p(y | x) to the mean of p (Salimans et al. 2016, 1606.03498).

Two published rules that differ in how the samples are cut into splits. All of them in float64 from log-probabilities,
where a class of vanishing probability adds 0 and not NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import log_softmax, logsumexp

from repa_eval.errors import UserError
from repa_eval.interfaces.metric import sample_metric
from repa_eval.metrics.shared.checks import Array, matrix

SPLIT = 5000  # samples of ADM's splits
BLOCK = 512  # samples whose probabilities are held at a time


def _stderr(real: ArrayLike | None, fake: ArrayLike, values: Mapping[str, float]) -> dict[str, float]:
    """Standard error of ADM's score: that of the mean divergence in each split, by its influence function."""
    logits = matrix("logits", fake)
    parts = [_divergences(logits[start:stop]) for start, stop in pairwise(_consecutive(len(logits), SPLIT))]
    errors = [_exp_mean(part) * float(part.std()) / math.sqrt(len(part)) for part in parts]
    return {"is": math.sqrt(float(np.square(errors).sum())) / len(errors)}


@sample_metric(
    "inception_score",
    needs="logits",
    gives=("is",),
    stderr=_stderr,
    definition="exp of the mean KL divergence of a sample's classes from those of all; mean of splits of 5000 in order",
    range="1..number of classes, higher is better; the real images are not used",
    better="higher",
    meaning={
        "is": "inception score computed from the extractor's class probabilities",
        "inception_score": "inception score",
    },
)
def inception_score(real: ArrayLike | None, fake: ArrayLike) -> dict[str, float]:
    """Return {"is": score} of the logits fake (N, K) by ADM's rule; the real ones are not used and may be None."""
    return {"is": inception_score_adm(fake)}


def inception_score_adm(logits: ArrayLike, *, split_size: int = SPLIT) -> float:
    """Return the score of logits (N, K) as openai/guided-diffusion takes it; 1..K.

    Consecutive splits of `split_size` samples in the given order, the last may be short; their mean. Samples sorted
    by class lower it: keep their order random or balanced.
    """
    logits = matrix("logits", logits)
    if split_size < 1:
        raise UserError(f"split_size={split_size}: a split needs at least one sample")
    return over_splits(logits, _consecutive(len(logits), split_size))[0]


def inception_score_torch_fidelity(logits: ArrayLike, *, splits: int = 10, shuffle: bool = True) -> tuple[float, float]:
    """Return mean and population standard deviation over the splits of logits (N, K), as torch-fidelity 0.4.0 does.

    shuffle: order of RandomState(2020). Split i is [i N // splits, (i + 1) N // splits).
    """
    logits = ordered(logits, splits=splits, shuffle=shuffle)
    edges = [i * len(logits) // splits for i in range(splits + 1)]
    return over_splits(logits, edges)


def ordered(logits: ArrayLike, *, splits: int, shuffle: bool) -> Array:
    """Return the logits (N, K), in the order of RandomState(2020) if `shuffle`; UserError for too many splits."""
    array = matrix("logits", logits)
    if not 1 <= splits <= len(array):
        raise UserError(f"splits={splits}: allowed are 1..{len(array)}, the number of samples")
    return array[np.random.RandomState(2020).permutation(len(array))] if shuffle else array


def over_splits(logits: Array, edges: Sequence[int]) -> tuple[float, float]:
    """Return mean and population standard deviation of the scores of logits (N, K) between neighbouring edges."""
    scores = [_score(logits[start:stop]) for start, stop in pairwise(edges)]
    return float(np.mean(scores)), float(np.std(scores))


def _consecutive(n: int, size: int) -> list[int]:
    return [*range(0, n, size), n]


def _score(logits: Array) -> float:
    return _exp_mean(_divergences(logits))


def _exp_mean(divergences: Array) -> float:
    return float(np.exp(divergences.mean()))


def _divergences(logits: Array) -> Array:
    """Return KL(p(y | x) || mean p) of each sample (N,), in blocks: float64 copies of all logits would be large."""
    blocks = [logits[start : start + BLOCK] for start in range(0, len(logits), BLOCK)]
    sums = [logsumexp(_log_probabilities(block), axis=0) for block in blocks]
    log_mean = logsumexp(sums, axis=0) - np.log(len(logits))  # (K,)
    return np.concatenate([_divergences_from(log_mean, _log_probabilities(block)) for block in blocks])


def _divergences_from(log_mean: Array, log_p: Array) -> Array:
    values: Array = (np.exp(log_p) * (log_p - log_mean)).sum(axis=1)
    return values


def _log_probabilities(logits: Array) -> Array:
    log_p: Array = log_softmax(logits.astype(np.float64), axis=1)
    return log_p
