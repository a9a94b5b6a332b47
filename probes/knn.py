"""DINOv2's k-NN probe: weighted vote of the nearest training features (arXiv 2304.07193; evaluation code of DINO)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import softmax

from repa_eval.errors import UserError
from repa_eval.metrics.shared.kernels import normalise_rows

Array = np.ndarray[Any, Any]
TEMPERATURE = 0.07
KS = (5, 10, 20, 50)
BLOCK, CHUNK = 1024, 8192  # queries and training rows of one block of similarities: 32 MB in float32


@dataclass(frozen=True)
class Voting:
    """A chosen k-NN probe: k of the training features (N, D) vote."""

    train: Array
    labels: Array
    num_classes: int | None
    ks: tuple[int, ...]  # among which k was chosen; the largest decides the weights
    k: int

    def predict(self, features: Array) -> Array:
        """Return the class (M,) of features (M, D)."""
        votes = knn_votes(self.train, self.labels, features, ks=self.ks, num_classes=self.num_classes)
        result: Array = votes[self.k].argmax(1)
        return result


def fit_best(
    train: Array, train_labels: Array, val: Array, val_labels: Array, *, num_classes: int | None = None
) -> Voting:
    """Return the vote of as many neighbours as are most accurate on the validation features, few before many."""
    ks = tuple(k for k in KS if k <= len(train)) or (1,)
    votes = knn_votes(train, train_labels, val, ks=ks, num_classes=num_classes)
    best = max(ks, key=lambda k: float((votes[k].argmax(1) == val_labels).mean()))
    return Voting(train, train_labels, num_classes, ks, best)


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
    votes = {k: np.zeros((len(test), classes)) for k in ks}
    for first, nearest, values in _neighbours(normalise_rows(train), normalise_rows(test), most):
        weights = softmax(values.astype(np.float64) / TEMPERATURE, axis=1)
        for k, result in votes.items():
            rows = np.repeat(np.arange(first, first + len(nearest)), k)
            np.add.at(result, (rows, train_labels[nearest[:, :k]].ravel()), weights[:, :k].ravel())
    return votes


def _neighbours(base: Array, queries: Array, most: int) -> Iterator[tuple[int, Array, Array]]:
    """Yield, for blocks of queries, the first one's number and the `most` largest products with rows of base (N, D).

    Their rows and values (block, most), the largest first. Memory does not grow with N: base is read in chunks, and
    only the best of each stay.
    """
    for first in range(0, len(queries), BLOCK):
        block = queries[first : first + BLOCK]
        nearest, values = np.empty((len(block), 0), np.int64), np.empty((len(block), 0), base.dtype)
        for start in range(0, len(base), CHUNK):
            places, found = _largest(block @ base[start : start + CHUNK].T, most)
            nearest = np.concatenate([nearest, places + start], axis=1)
            values = np.concatenate([values, found], axis=1)
            if values.shape[1] > most:
                kept, values = _largest(values, most)
                nearest = np.take_along_axis(nearest, kept, 1)
        order = np.argsort(-values, axis=1, kind="stable")
        yield first, np.take_along_axis(nearest, order, 1), np.take_along_axis(values, order, 1)


def _largest(values: Array, most: int) -> tuple[Array, Array]:
    """Return the places and values of the `most` largest in each row of values (B, N), in no order; of all if fewer."""
    most = min(most, values.shape[1])
    places = np.argpartition(-values, most - 1, axis=1)[:, :most]
    return places, np.take_along_axis(values, places, axis=1)
