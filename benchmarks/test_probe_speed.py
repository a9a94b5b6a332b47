"""Speed of the linear probes of a whole layer x timestep map against scikit-learn's LogisticRegression, one by one.

Both choose among the same seven strengths of the penalty on the validation images; one thread, CPU time, the same run.
Features: digits noised at five times, through twelve random residual layers (what a model of depth 12 has, without its
forward passes). Nothing is asserted about time; accuracies are means over the sixty cells, on 3,000 test images.
`python -m pytest -q -s benchmarks/test_probe_speed.py` prints the table; it takes about a minute.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from repa_eval.interfaces.images import Images, load_data
from repa_eval.probes.batch_norm import Training
from repa_eval.probes.contract import Known
from repa_eval.probes.kinds import kind_of

Array = np.ndarray[Any, Any]
DEPTH, TIMESTEPS = 12, (0.05, 0.1, 0.2, 0.3, 0.5)
NUM_TRAIN, NUM_TEST = 1500, 3000


def hidden(images: Images, width: int, t: float, seed: int) -> list[Array]:
    """Return features (N, width), float32, of every layer."""
    x = images.images.reshape(len(images), -1).astype(np.float32) / 127.5 - 1
    x = (1 - t) * x + t * np.random.default_rng(seed).standard_normal(x.shape).astype(np.float32)
    maps = np.random.default_rng(99)
    found: list[Array] = []
    for _ in range(DEPTH):
        weights = 1.5 * maps.standard_normal((x.shape[1], width), dtype=np.float32) / np.sqrt(x.shape[1])
        x = 0.5 * np.tanh(x @ weights) + (x if found else 0.0)
        found.append(x)
    return found


def probed(kind: str, maps: list[dict[str, list[Array]]], parts: dict[str, Images]) -> list[float]:
    """Return the test accuracy of every layer and timestep."""
    scores = []
    labels = {name: images.labels for name, images in parts.items()}
    for features in maps:
        known = Known(features["train"], labels["train"], features["val"], labels["val"], 10)
        for probe, test in zip(kind_of(kind).fit(known, Training()), features["test"], strict=True):
            scores.append(float((probe.predict(test) == labels["test"]).mean()))
    return scores


def timed(function: Callable[[], list[float]]) -> tuple[float, Array]:
    began = time.process_time()
    found = function()
    return time.process_time() - began, np.array(found)


@pytest.mark.parametrize("width", [64, 384])
def test_ridge_of_a_whole_map_against_logistic_regression(width: int) -> None:
    parts = {
        "train": load_data("digits", "train").head(NUM_TRAIN),
        "val": load_data("digits", "val"),
        "test": load_data("digits", "test-large").head(NUM_TEST),
    }
    with threadpool_limits(1):
        maps = [
            {name: hidden(images, width, t, seed) for seed, (name, images) in enumerate(parts.items())}
            for t in TIMESTEPS
        ]
        probed("linear", maps[:1], parts)  # the first product starts the library
        ours, own = timed(lambda: probed("linear", maps, parts))
        theirs, peer = timed(lambda: probed("logistic", maps, parts))
    apart = own - peer
    print(
        f"\nprobes of {DEPTH} layers x {len(TIMESTEPS)} timesteps, width {width}, n={NUM_TRAIN}:"
        f" {theirs / ours:.0f} times the speed ({ours:.2f} s, scikit-learn's LogisticRegression {theirs:.1f} s);"
        f" mean accuracy {own.mean():.4f} against {peer.mean():.4f}, apart {apart.min():+.4f} .. {apart.max():+.4f}"
    )
    assert own.mean() > peer.mean() - 0.03
