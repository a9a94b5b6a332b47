"""Linear probe: features standardised by the training statistics, then ridge or logistic regression."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from repa_eval.errors import UserError

Array = np.ndarray[Any, Any]
STRENGTHS = tuple(10.0**power for power in range(-2, 5))


def fit(features: Array, labels: Array, *, strength: float = 1.0, kind: str = "ridge") -> Pipeline:
    """Return a fitted probe of features (N, D) and labels (N,); strength: the weight of the L2 penalty."""
    if kind not in ("ridge", "logistic"):
        raise UserError(f"probe {kind!r} is not known; choose ridge or logistic")
    model = RidgeClassifier(alpha=strength) if kind == "ridge" else LogisticRegression(C=1 / strength, max_iter=1000)
    # float64: in float32 the normal equations of a small penalty are ill-conditioned
    probe: Pipeline = make_pipeline(StandardScaler(), model).fit(features.astype(np.float64), labels)
    return probe


def score(probe: Pipeline, features: Array, labels: Array) -> float:
    """Return the accuracy of a probe on features (M, D) and labels (M,)."""
    return float(probe.score(features.astype(np.float64), labels))


def fit_best(
    train: Array, train_labels: Array, val: Array, val_labels: Array, *, kind: str = "ridge"
) -> tuple[Pipeline, float]:
    """Return the probe and the strength that is most accurate on the validation features; nothing sees the test set."""
    fitted = [(strength, fit(train, train_labels, strength=strength, kind=kind)) for strength in STRENGTHS]
    strength, probe = max(fitted, key=lambda pair: score(pair[1], val, val_labels))
    return probe, strength
