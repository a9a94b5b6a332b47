"""Published rules of sample metrics: which resize, splits and draws a number was taken with."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import ArrayLike

from repa_eval.errors import unknown
from repa_eval.interfaces.metric import SAMPLE
from repa_eval.metrics.inception_score import inception_score_torch_fidelity
from repa_eval.metrics.kid import CLEAN_SEED, kid

REFERENCE_IMAGES = 10_000  # of ADM's npz, the manifold of its precision and recall
Function = Callable[..., dict[str, float]]


@dataclass(frozen=True)
class Protocol:
    """One evaluator's rules.

    extractors: what stands in for an extractor, where the resize rule is another. functions: metrics that it computes
    in its own way. without: metrics that it does not have. record: what is stored and printed with the numbers.
    """

    name: str
    record: Mapping[str, Any]
    extractors: Mapping[str, str] = field(default_factory=dict)
    functions: Mapping[str, Function] = field(default_factory=dict)
    without: frozenset[str] = frozenset()
    reference_images: int | None = None  # of precision and recall; None: all

    def function(self, metric: str) -> Function:
        """Return what computes a metric under these rules."""
        return self.functions.get(metric) or SAMPLE.get(metric).function

    def says(self) -> str:
        """Return the record in one line."""
        return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in self.record.items() if key != "rules")


def _is_torch_fidelity(real: ArrayLike | None, fake: ArrayLike) -> dict[str, float]:
    splits = min(10, len(fake))  # type: ignore[arg-type]
    mean, std = inception_score_torch_fidelity(fake, splits=splits)
    return {"is": mean, "is_stderr": std / math.sqrt(splits)}


PROTOCOLS = {
    "adm": Protocol(
        "adm",
        {
            "rules": "adm",
            "ddof": 1,
            "is_splits": "of 5000 in order",
            "kid_draws": "100 x 1000, seed 2020",
            "precision_recall": f"k=3, squared distances, <=, {REFERENCE_IMAGES} reference images",
        },
        reference_images=REFERENCE_IMAGES,
    ),
    "torch-fidelity": Protocol(
        "torch-fidelity",
        {
            "rules": "torch-fidelity",
            "ddof": 1,
            "is_splits": "10, shuffled, seed 2020",
            "kid_draws": "100 x 1000, seed 2020",
            "precision_recall": "k=3, <=, all reference images",
        },
        functions={"inception_score": _is_torch_fidelity},
        without=frozenset({"sfd"}),
    ),
    "clean": Protocol(
        "clean",
        {"rules": "clean", "ddof": 1, "kid_draws": "100 x 1000, seed 0"},
        extractors={"inception": "inception-clean"},
        functions={"kid": functools.partial(kid, seed=CLEAN_SEED)},
        without=frozenset({"sfd", "inception_score", "precision_recall"}),
    ),
}


def protocol_named(name: str) -> Protocol:
    """Return the protocol; UserError with the nearest name if there is none."""
    if name not in PROTOCOLS:
        raise unknown("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]
