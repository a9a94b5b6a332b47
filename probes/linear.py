"""Linear probe: standardised features, then ridge regression to the classes; logistic regression as a check.

Ridge takes one eigendecomposition for every strength of the penalty; scikit-learn's solves anew for each.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from repa_eval.errors import UserError

Array = np.ndarray[Any, Any]
STRENGTHS = tuple(10.0**power for power in range(-2, 5))
MAX_ITERATIONS = 1000  # of logistic regression


@dataclass(frozen=True)
class Linear:
    """A fitted probe: standardise by mean (D,) and scale (D,), then one score per class, weights (D, K).

    setting: what was to be chosen, the strength of the penalty or the learning rate.
    """

    mean: Array
    scale: Array
    weights: Array
    intercept: Array
    setting: float

    def predict(self, features: Array) -> Array:
        """Return the class (M,) of features (M, D)."""
        standardised = (features.astype(np.float64) - self.mean) / self.scale
        result: Array = (standardised @ self.weights + self.intercept).argmax(1)
        return result

    def score(self, features: Array, labels: Array) -> float:
        """Return the accuracy on features (M, D) and labels (M,)."""
        return float((self.predict(features) == labels).mean())


def statistics(features: Array) -> tuple[Array, Array]:
    """Return the mean (D,) and the standard deviation (D,), 1 where a feature is constant, of features (N, D)."""
    x = features.astype(np.float64)
    mean, scale = x.mean(0), x.std(0)
    scale[scale == 0] = 1.0  # a constant feature says nothing
    return mean, scale


def fit_all(
    features: Array, labels: Array, *, strengths: Sequence[float] = STRENGTHS, num_classes: int | None = None
) -> list[Linear]:
    """Return a probe for every strength of the L2 penalty: ridge regression to -1 and +1 per class, with intercept.

    features (N, D), labels (N,). Equal to scikit-learn's StandardScaler and RidgeClassifier, in float64.
    """
    classes = int(labels.max()) + 1 if num_classes is None else num_classes
    return fit_layers([features], labels, strengths=strengths, num_classes=classes)[0]


def fit_layers(
    layers: Sequence[Array], labels: Array, *, strengths: Sequence[float] = STRENGTHS, num_classes: int
) -> list[list[Linear]]:
    """Return, for the features (N, D) of every layer, a probe for every strength; the targets are made once."""
    targets = 2.0 * np.eye(num_classes)[labels] - 1
    intercept = targets.mean(0)
    targets -= intercept
    found = []
    for features in layers:
        mean, scale = statistics(features)
        solutions = _solutions((features.astype(np.float64) - mean) / scale, targets, strengths)
        pairs = zip(strengths, solutions, strict=True)
        found.append([Linear(mean, scale, weights, intercept, strength) for strength, weights in pairs])
    return found


def _solutions(x: Array, targets: Array, strengths: Sequence[float]) -> list[Array]:
    """Return the ridge weights (D, K) for centred x (N, D) and targets (N, K) at every strength.

    The eigenvectors are those of x'x (D, D), or of xx' (N, N) where the images are fewer than the features.
    """
    few = len(x) < x.shape[1]
    values, vectors = np.linalg.eigh(x @ x.T if few else x.T @ x)
    values = values.clip(min=0)
    rotated = vectors.T @ (targets if few else x.T @ targets)
    solutions = [vectors @ (rotated / (values + strength)[:, None]) for strength in strengths]
    return [x.T @ dual for dual in solutions] if few else solutions


def fit(features: Array, labels: Array, *, strength: float = 1.0, num_classes: int | None = None) -> Linear:
    """Return the ridge probe of one strength."""
    if strength <= 0:
        raise UserError(f"strength {strength}: the penalty must be positive")
    return fit_all(features, labels, strengths=(strength,), num_classes=num_classes)[0]


def best(fitted: Sequence[Linear], val: Array, val_labels: Array) -> Linear:
    """Return the first of the probes that are most accurate on the validation features."""
    return max(fitted, key=lambda probe: probe.score(val, val_labels))


def fit_best(
    train: Array, train_labels: Array, val: Array, val_labels: Array, *, num_classes: int | None = None
) -> Linear:
    """Return the ridge probe that is most accurate on the validation features; nothing sees the test set.

    Of equally good ones the strongest penalty wins.
    """
    return best(fit_all(train, train_labels, num_classes=num_classes)[::-1], val, val_labels)


def fit_logistic(features: Array, labels: Array, *, strength: float = 1.0) -> Pipeline:
    """Return scikit-learn's logistic regression on standardised features: the slower check of `fit`."""
    model = LogisticRegression(C=1 / strength, max_iter=MAX_ITERATIONS)
    probe: Pipeline = make_pipeline(StandardScaler(), model).fit(features.astype(np.float64), labels)
    return probe


def fit_best_logistic(train: Array, train_labels: Array, val: Array, val_labels: Array) -> tuple[Pipeline, float, bool]:
    """Return the logistic regression that is most accurate on the validation features, its strength, if it converged.

    The strengths are the ridge's; of equally good ones the strongest penalty wins.
    """
    found: list[tuple[Pipeline, float, bool]] = []
    for strength in reversed(STRENGTHS):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            model = fit_logistic(train, train_labels, strength=strength)
        stopped = any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
        found.append((model, strength, not stopped))
    return max(found, key=lambda each: each[0].score(val.astype(np.float64), val_labels))
