"""Quality of samples: generated and reference images -> rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from repa_eval.data._registry import Images, ImageSource
from repa_eval.errors import UserError
from repa_eval.extractors._registry import Extractor, Features, extract
from repa_eval.metrics._registry import SAMPLE
from repa_eval.results import Row, make_row

KEEP = 8  # references whose features stay in memory
_kept: dict[tuple[str, str], Features] = {}  # content-addressed: (reference, extractor) -> features

METRICS = ("fd", "inception_score", "precision_recall")
# Inception's numbers have the field's names; on another extractor a number carries the extractor's name
_INCEPTION = {"fd": "fid", "is": "inception_score"}


def evaluate(
    fake: ImageSource,
    reference: ImageSource,
    judge: Extractor,
    *,
    metrics: Sequence[str] = METRICS,
    protocol: Mapping[str, Any] | None = None,
    columns: Mapping[str, Any] | None = None,
    batch_size: int = 256,
) -> list[Row]:
    """Return one row per number that the metrics give for generated images against the reference.

    Features are extracted once for all metrics. Metrics that need class logits are left out for a judge without any.
    protocol: how the samples were made; columns: further entries of every row.
    """
    chosen = [SAMPLE.get(name) for name in metrics]
    judge.prepare(reference)
    real = reference_features(reference, judge, batch_size)
    made = extract(fake, judge, batch_size=batch_size)
    record = record_of(judge, reference, len(made), protocol)
    note = _too_few(len(made), made.features.shape[1])
    rows = []
    for metric in chosen:
        if metric.needs == "logits" and not judge.has_logits:
            continue
        values = metric.function(_inputs(real, metric.needs), _inputs(made, metric.needs))
        for suffix, value in values.items():
            named = metric_name(suffix, judge.name)
            rows.append(make_row(metric=named, value=value, n=len(made), protocol=record, note=note, **(columns or {})))
    return rows


def record_of(
    judge: Extractor, reference: ImageSource, num_samples: int, protocol: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the record beside the rows of `num_samples` samples; the judge must have been prepared."""
    return {
        "kind": "sample quality",
        "extractor": judge.name,
        "extractor_hash": judge.digest,
        "resize": judge.resize,
        "reference": reference.name,
        "reference_hash": reference.digest(),
        "reference_n": len(reference),
        "num_samples": num_samples,
        **(protocol or {}),
    }


def names_of(metrics: Sequence[str], judge: Extractor) -> list[str]:
    """Return the metric names of the rows that `evaluate` would make."""
    chosen = [SAMPLE.get(name) for name in metrics]
    usable = [metric for metric in chosen if judge.has_logits or metric.needs != "logits"]
    return [metric_name(suffix, judge.name) for metric in usable for suffix in metric.gives]


def metric_name(suffix: str, extractor: str) -> str:
    """Return the name under which a number of an extractor is stored: fid, precision; fd_digits, precision_digits."""
    return _INCEPTION.get(suffix, suffix) if extractor == "inception" else f"{suffix}_{extractor}"


def reference_features(reference: ImageSource, judge: Extractor, batch_size: int) -> Features:
    """Return the features of the reference; those of data held in memory are kept for the next call."""
    if not isinstance(reference, Images):
        return extract(reference, judge, batch_size=batch_size)
    key = (reference.digest(), judge.digest)
    if key not in _kept:
        if len(_kept) >= KEEP:
            _kept.clear()
        _kept[key] = extract(reference, judge, batch_size=batch_size)
    return _kept[key]


def _inputs(features: Features, needs: str) -> Any:
    if needs == "features":
        return features.features
    if features.logits is None:
        raise UserError("the extractor gives no logits")
    return features.logits


def _too_few(n: int, width: int) -> str | None:
    return f"n={n} is below twice the {width} features: the covariance is noisy" if n < 2 * width else None
