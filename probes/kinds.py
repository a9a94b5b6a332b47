"""The kinds of probes: the metric of each, what the protocol says of it, and how it is fitted to several layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline

from repa_eval.errors import UserError
from repa_eval.probes import batch_norm, knn, linear
from repa_eval.probes.batch_norm import Training
from repa_eval.probes.contract import Known, Probe

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Kind:
    """One kind of probe. text: of the protocol. fit: a probe for every layer, its setting chosen on val.

    metric: name of its rows, an accuracy, so higher is better. meaning: half a sentence, as the report explains it.
    drawn: whether the seed decides anything.
    """

    metric: str
    meaning: str
    text: Callable[[Training], str]
    fit: Callable[[Known, Training], list[Probe]]
    drawn: bool = False


def _ridge(known: Known, training: Training) -> list[Probe]:
    fitted = linear.fit_layers(known.train, known.train_labels, num_classes=known.num_classes)
    return [
        _chosen(linear.best(own[::-1], val, known.val_labels), "strength")
        for own, val in zip(fitted, known.val, strict=True)
    ]


def _batch_norm(known: Known, training: Training) -> list[Probe]:
    fitted = batch_norm.fit_layers(known.train, known.train_labels, num_classes=known.num_classes, training=training)
    return [
        _chosen(linear.best(own, val, known.val_labels), "learning rate")
        for own, val in zip(fitted, known.val, strict=True)
    ]


def _chosen(probe: linear.Linear, what: str) -> Probe:
    return Probe(probe.predict, f"{what} {probe.setting:g}")


def _logistic(known: Known, training: Training) -> list[Probe]:
    probes = []
    for train, val in zip(known.train, known.val, strict=True):
        model, strength, converged = linear.fit_best_logistic(train, known.train_labels, val, known.val_labels)
        remark = None if converged else f"logistic regression: stopped after {linear.MAX_ITERATIONS} iterations"
        probes.append(Probe(partial(_classes, model), f"strength {strength:g}", remark))
    return probes


def _classes(model: Pipeline, features: Array) -> Array:
    result: Array = model.predict(features.astype(np.float64))
    return result


def _knn(known: Known, training: Training) -> list[Probe]:
    probes = []
    for train, val in zip(known.train, known.val, strict=True):
        voting = knn.fit_best(train, known.train_labels, val, known.val_labels, num_classes=known.num_classes)
        probes.append(Probe(voting.predict, f"k {voting.k}"))
    return probes


def _strengths(name: str) -> str:
    return f"standardised, {name}, strength of {linear.STRENGTHS[0]:g}..{linear.STRENGTHS[-1]:g} chosen on val"


KINDS = {
    "linear": Kind(
        "probe_accuracy",
        "accuracy of a linear classifier on the hidden states",
        lambda training: _strengths("ridge"),
        _ridge,
    ),
    "knn": Kind(
        "knn_accuracy",
        "accuracy of a nearest-neighbour classifier on the hidden states",
        lambda training: f"k-NN, cosine, temperature 0.07, k of {', '.join(map(str, knn.KS))} chosen on val",
        _knn,
    ),
    "linear-bn": Kind(
        "linear_bn_accuracy",
        "accuracy of a linear classifier after batch norm, trained by Adam, on the hidden states",
        Training.text,
        _batch_norm,
        drawn=True,
    ),
    "logistic": Kind(
        "logistic_accuracy",
        "accuracy of a logistic regression on the hidden states",
        lambda training: _strengths("logistic regression"),
        _logistic,
    ),
}


def kind_of(name: str) -> Kind:
    """Return the kind of this name; UserError with the names that there are."""
    if name not in KINDS:
        raise UserError(f"probe {name}: choose of {', '.join(KINDS)}")
    return KINDS[name]
