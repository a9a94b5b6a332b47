"""Speed of our statistics as ratios to a peer in the same run: one thread, CPU time, best of a few rounds.

`tox -e bench` prints the table; nothing is asserted about time, because these machines are shared.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_statistics_to_metric

from repa_eval.metrics.cknna import cknna
from repa_eval.metrics.fid import frechet_distance, moments
from repa_eval.metrics.shared.kernels import linear_gram, normalise_rows

Array = np.ndarray[Any, Any]


def cpu_seconds(function: Callable[[], object], rounds: int = 3) -> float:
    """Return the least CPU time of a call."""
    times = []
    for _ in range(rounds):
        began = time.process_time()
        function()
        times.append(time.process_time() - began)
    return min(times)


def compare(benchmark: Any, ours: Callable[[], float], peer: Callable[[], float], rel: float) -> None:
    """Run both, record the ratio, and check that they agree."""
    torch.set_num_threads(1)
    value = benchmark.pedantic(ours, rounds=3, iterations=1)
    assert value == pytest.approx(peer(), rel=rel)
    benchmark.extra_info["peer_over_ours"] = round(cpu_seconds(peer) / cpu_seconds(ours), 2)
    print(f"\n{benchmark.name}: {benchmark.extra_info['peer_over_ours']} times the peer's speed")


@pytest.mark.parametrize("width", [512, 1024])
def test_frechet_against_torch_fidelity(benchmark: Any, width: int) -> None:
    rng = np.random.default_rng(0)
    a, b = (moments(rng.standard_normal((3 * width, width)) + shift) for shift in (0.0, 0.05))
    given = [{"mu": m.mean, "sigma": m.covariance} for m in (a, b)]

    def peer() -> float:
        return float(fid_statistics_to_metric(*given, verbose=False)["frechet_inception_distance"])

    compare(benchmark, lambda: frechet_distance(a.mean, a.covariance, b.mean, b.covariance), peer, 1e-6)


@pytest.mark.parametrize("n", [1000, 3000])
def test_cknna_against_the_dense_definition(benchmark: Any, n: int) -> None:
    rng = np.random.default_rng(0)
    base = rng.standard_normal((n, 64))
    x, y = (normalise_rows(np.tanh(base @ rng.standard_normal((64, 768)))).astype(np.float32) for _ in range(2))
    compare(benchmark, lambda: cknna(x, y), lambda: dense_cknna(x, y, 10), 1e-4)


def dense_cknna(x: Array, y: Array, k: int) -> float:
    """Return platonic-rep's CKNNA with its n x n products written out."""
    gram_x, gram_y = linear_gram(x).astype(np.float64), linear_gram(y).astype(np.float64)
    masks = []
    for gram in (gram_x, gram_y):
        without_self = gram.copy()
        np.fill_diagonal(without_self, -np.inf)
        nearest = np.argpartition(-without_self, k - 1, axis=1)[:, :k]
        mask = np.zeros_like(gram)
        np.put_along_axis(mask, nearest, 1.0, axis=1)
        masks.append(mask)
    both = masks[0] * masks[1]
    cross = _hsic(both * gram_x, both * gram_y)
    own = _hsic(masks[0] * gram_x, masks[0] * gram_x) * _hsic(masks[1] * gram_y, masks[1] * gram_y)
    return float(cross / (np.sqrt(own) + 1e-6))


def _hsic(a: Array, b: Array) -> float:
    n = len(a)
    a, b = a.copy(), b.copy()
    np.fill_diagonal(a, 0)
    np.fill_diagonal(b, 0)
    total = (a * b.T).sum() + a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 * (a @ b).sum() / (n - 2)
    return float(total / (n * (n - 3)))
