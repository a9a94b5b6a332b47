"""DINOv2's k-NN probe: weighted vote of the nearest training features (arXiv 2304.07193; evaluation code of DINO)."""

from __future__ import annotations

from typing import Any

import numpy as np

from repa_eval.errors import UserError
from repa_eval.metrics._kernels import normalise_rows

Array = np.ndarray[Any, Any]
TEMPERATURE = 0.07
BLOCK = 1024


def knn_accuracy(
    train: Array, train_labels: Array, test: Array, test_labels: Array, *, k: int = 20, num_classes: int | None = None
) -> float:
    """Return the accuracy of a k-NN vote on test features (M, D) from training features (N, D).

    Rows are L2-normalised; the k most similar training rows vote with weight softmax(similarity / 0.07).
    """
    predicted = knn_votes(train, train_labels, test, k=k, num_classes=num_classes).argmax(1)
    return float((predicted == test_labels).mean())


def knn_votes(train: Array, train_labels: Array, test: Array, *, k: int = 20, num_classes: int | None = None) -> Array:
    """Return the votes (M, num_classes), float64, of the k nearest training rows of every test row."""
    if not 1 <= k <= len(train):
        raise UserError(f"k {k}: there are {len(train)} training features")
    classes = int(train_labels.max()) + 1 if num_classes is None else num_classes
    base, queries = normalise_rows(train), normalise_rows(test)
    votes = np.zeros((len(test), classes))
    for first in range(0, len(test), BLOCK):
        similarity = queries[first : first + BLOCK] @ base.T
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        logits = np.take_along_axis(similarity, nearest, axis=1).astype(np.float64) / TEMPERATURE
        weights = np.exp(logits - logits.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        rows = np.repeat(np.arange(first, first + len(similarity)), k)
        np.add.at(votes, (rows, train_labels[nearest].ravel()), weights.ravel())
    return votes
