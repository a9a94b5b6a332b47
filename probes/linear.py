"""Linear probe: standardised features, then ridge regression to the classes; logistic regression as a check.

Ridge takes one eigendecomposition for every strength of the penalty; scikit-learn's solves anew for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from repa_eval.errors import UserError

Array = np.ndarray[Any, Any]
STRENGTHS = tuple(10.0**power for power in range(-2, 5))


@dataclass(frozen=True)
class Ridge:
    """A fitted probe: standardise by mean (D,) and scale (D,), then one score per class, weights (D, K)."""

    mean: Array
    scale: Array
    weights: Array
    intercept: Array
    strength: float

    def predict(self, features: Array) -> Array:
        """Return the class (M,) of features (M, D)."""
        standardised = (features.astype(np.float64) - self.mean) / self.scale
        result: Array = (standardised @ self.weights + self.intercept).argmax(1)
        return result

    def score(self, features: Array, labels: Array) -> float:
        """Return the accuracy on features (M, D) and labels (M,)."""
        return float((self.predict(features) == labels).mean())


def fit_all(
    features: Array, labels: Array, *, strengths: tuple[float, ...] = STRENGTHS, num_classes: int | None = None
) -> list[Ridge]:
    """Return a probe for every strength of the L2 penalty: ridge regression to -1 and +1 per class, with intercept.

    features (N, D), labels (N,). Equal to scikit-learn's StandardScaler and RidgeClassifier, in float64.
    """
    x = features.astype(np.float64)
    mean, scale = x.mean(0), x.std(0)
    scale[scale == 0] = 1.0  # a constant feature says nothing
    x = (x - mean) / scale
    targets = 2.0 * np.eye(int(labels.max()) + 1 if num_classes is None else num_classes)[labels] - 1
    intercept = targets.mean(0)
    values, vectors = np.linalg.eigh(x.T @ x)
    rotated = vectors.T @ (x.T @ (targets - intercept))  # (D, K)
    values = values.clip(min=0)
    return [
        Ridge(mean, scale, vectors @ (rotated / (values + strength)[:, None]), intercept, strength)
        for strength in strengths
    ]


def fit(features: Array, labels: Array, *, strength: float = 1.0, num_classes: int | None = None) -> Ridge:
    """Return the ridge probe of one strength."""
    if strength <= 0:
        raise UserError(f"strength {strength}: the penalty must be positive")
    return fit_all(features, labels, strengths=(strength,), num_classes=num_classes)[0]


def fit_best(
    train: Array, train_labels: Array, val: Array, val_labels: Array, *, num_classes: int | None = None
) -> Ridge:
    """Return the probe that is most accurate on the validation features; nothing sees the test set.

    Of equally good ones the strongest penalty wins.
    """
    fitted = fit_all(train, train_labels, num_classes=num_classes)
    return max(reversed(fitted), key=lambda probe: probe.score(val, val_labels))


def fit_logistic(features: Array, labels: Array, *, strength: float = 1.0) -> Pipeline:
    """Return scikit-learn's logistic regression on standardised features: the slower check of `fit`."""
    model = LogisticRegression(C=1 / strength, max_iter=1000)
    probe: Pipeline = make_pipeline(StandardScaler(), model).fit(features.astype(np.float64), labels)
    return probe
