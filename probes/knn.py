"""DINOv2's k-NN probe: weighted vote of the nearest training features (arXiv 2304.07193; evaluation code of DINO)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import softmax

from repa_eval.errors import UserError
from repa_eval.metrics._kernels import normalise_rows

Array = np.ndarray[Any, Any]
TEMPERATURE = 0.07
BLOCK = 1024


def knn_accuracy(
    train: Array, train_labels: Array, test: Array, test_labels: Array, *, k: int = 20, num_classes: int | None = None
) -> float:
    """Return the accuracy of a k-NN vote on test features (M, D) from training features (N, D)."""
    votes = knn_votes(train, train_labels, test, ks=(k,), num_classes=num_classes)[k]
    return float((votes.argmax(1) == test_labels).mean())


def knn_votes(
    train: Array, train_labels: Array, test: Array, *, ks: Sequence[int] = (20,), num_classes: int | None = None
) -> dict[int, Array]:
    """Return {k: votes (M, num_classes), float64} of the k most similar training rows of every test row.

    Rows are L2-normalised; the weights are softmax(similarity / 0.07) over the max(ks) nearest rows, of which the
    first k vote: for a smaller k the votes of a row do not sum to 1, as in DINOv2's evaluation.
    """
    most = max(ks)
    if min(ks) < 1 or most > len(train):
        raise UserError(f"k {', '.join(map(str, ks))}: there are {len(train)} training features")
    classes = int(train_labels.max()) + 1 if num_classes is None else num_classes
    base, queries = normalise_rows(train), normalise_rows(test)
    votes = {k: np.zeros((len(test), classes)) for k in ks}
    for first in range(0, len(test), BLOCK):
        similarity = queries[first : first + BLOCK] @ base.T  # (block, N)
        nearest = np.argpartition(-similarity, most - 1, axis=1)[:, :most]
        values = np.take_along_axis(similarity, nearest, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        nearest, values = np.take_along_axis(nearest, order, 1), np.take_along_axis(values, order, 1)
        weights = softmax(values.astype(np.float64) / TEMPERATURE, axis=1)
        for k, result in votes.items():
            rows = np.repeat(np.arange(first, first + len(similarity)), k)
            np.add.at(result, (rows, train_labels[nearest[:, :k]].ravel()), weights[:, :k].ravel())
    return votes
