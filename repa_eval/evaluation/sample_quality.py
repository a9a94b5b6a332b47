"""Quality of samples: generated and reference images -> rows."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from repa_eval.data.readers.statistics import Statistics
from repa_eval.errors import UserError, unknown
from repa_eval.evaluation.evaluator_rules import PROTOCOLS, Protocol
from repa_eval.evaluation.reference import Real, reference_of
from repa_eval.evaluation.reference_features import ReferenceCache
from repa_eval.evaluation.sample_features import Gathered, Workers, gather
from repa_eval.interfaces.extractor import Extractor
from repa_eval.interfaces.image_source import ImageSource
from repa_eval.interfaces.metric import SAMPLE, SampleMetric
from repa_eval.metrics.fid import few
from repa_eval.metrics.shared.checks import reason_of, undefined
from repa_eval.results import Row, make_row

Memo = dict[tuple[int, str, str], Gathered | None]  # (source, judge, its resize) -> what was seen
METRICS = ("fd", "inception_score", "precision_recall")
# Inception's numbers have the field's names; on another extractor a number carries the extractor's name
_INCEPTION = {"fd": "fid", "sfd": "sfid", "is": "inception_score", "fd_infinity": "fid_infinity"}
_HOME = {"cmmd": "clip"}  # a number that has its plain name on another extractor
ADM = PROTOCOLS["adm"]


def evaluate(
    fake: ImageSource,
    reference: ImageSource | Statistics,
    judge: Extractor,
    *,
    metrics: Sequence[str] = METRICS,
    protocol: Mapping[str, Any] | None = None,
    columns: Mapping[str, Any] | None = None,
    batch_size: int = 256,
    rules: Protocol = ADM,
    held_out: ImageSource | None = None,
    workers: Workers | None = None,
    device: str = "cpu",
    memo: Memo | None = None,
    cache: ReferenceCache | None = None,
) -> list[Row]:
    """Return one row per number that the metrics give for generated images against the reference.

    Features are extracted once for all metrics. Metrics that need class logits or a spatial map are left out for a
    judge without them. protocol: how the samples were made; columns: further entries of every row; rules: those of an
    evaluator; held_out: real images outside the training set; device: where neighbours are searched; memo: keeps what
    was seen for a call with other rules; cache: keeps features of the reference for later calls. With several workers
    every process must call this; the rows come to the first, the others get none.
    """
    chosen = _usable(metrics, judge, rules)
    if any(metric.held_out for metric in chosen.values()) and held_out is None:
        raise UserError("metric memorisation needs real images that were not trained on: add --held-out DATA")
    if not chosen:
        return []
    if len(fake) == 1:
        raise UserError(f"{fake.name}: 1 image; a distribution needs 2 or more, and 50,000 are the usual number")
    if not isinstance(reference, Statistics):
        judge.prepare(reference)
    wanted = _wanted(chosen, fake=False)
    real = reference_of(reference, judge, wanted, batch_size=batch_size, workers=workers, cache=cache)
    memo, key = {} if memo is None else memo, (id(fake), judge.digest, judge.resize)
    if key not in memo:
        memo[key] = gather(fake, judge, **_wanted(chosen, fake=True), batch_size=batch_size, workers=workers)
    made, other = memo[key], None
    if held_out is not None:
        other = gather(held_out, judge, keep=("features",), batch_size=batch_size, workers=workers)
    if made is None or real is None:
        return []
    record = record_of(judge, reference, made.n, protocol, rules)
    shared = {"n": made.n, "protocol": record, **(columns or {})}
    rows = []
    for name, metric in chosen.items():
        values = _values(name, metric, real, made, other, rules, device)
        for suffix in metric.gives:
            value = values[suffix]
            entry = {"stderr": values.get(f"{suffix}_stderr"), "note": _note(metric, value, made), **shared}
            number = None if reason_of(value) else value
            rows.append(make_row(metric=metric_name(suffix, judge.name), value=number, **entry))
    return rows


def record_of(
    judge: Extractor,
    reference: ImageSource | Statistics,
    num_samples: int,
    protocol: Mapping[str, Any] | None = None,
    rules: Protocol = ADM,
) -> dict[str, Any]:
    """Return the record beside the rows of `num_samples` samples; the judge must have been prepared.

    The rules stand in it for ADM's Inception, on which they were published, and wherever they are not ADM's.
    """
    return {
        "kind": "sample quality",
        "extractor": judge.name,
        "extractor_hash": judge.digest,
        "resize": judge.resize,
        "reference": reference.name,
        "reference_hash": reference.digest(),
        "reference_n": reference.n if isinstance(reference, Statistics) else len(reference),
        "num_samples": num_samples,
        **(rules.record if judge.has_spatial or rules is not ADM else {}),
        **(protocol or {}),
    }


def unmeasured(
    fake: ImageSource,
    reference: ImageSource | Statistics,
    judge: Extractor,
    *,
    metrics: Sequence[str],
    protocol: Mapping[str, Any],
    columns: Mapping[str, Any],
    rules: Protocol = ADM,
) -> list[Row]:
    """Return the rows that `evaluate` would make, without their values: what they are found by in a table."""
    if not isinstance(reference, Statistics):
        judge.prepare(reference)
    n = len(fake)
    record = record_of(judge, reference, n, protocol, rules)
    names = names_of(metrics, judge, rules)
    return [make_row(metric=name, value=None, n=n, protocol=record, **columns) for name in names]


def names_of(metrics: Sequence[str], judge: Extractor, rules: Protocol = ADM) -> list[str]:
    """Return the metric names of the rows that `evaluate` would make."""
    chosen = _usable(metrics, judge, rules)
    return [metric_name(suffix, judge.name) for metric in chosen.values() for suffix in metric.gives]


def metric_name(suffix: str, extractor: str) -> str:
    """Return the name under which a number of an extractor is stored: fid, precision; fd_digits, precision_digits."""
    if suffix in _HOME:
        return suffix if extractor == _HOME[suffix] else f"{suffix}_{extractor}"
    return _INCEPTION.get(suffix, suffix) if extractor == "inception" else f"{suffix}_{extractor}"


def metric_called(name: str) -> str:
    """Return the registered metric that a name means: its own, that of a number that it gives, or of Inception's.

    UserError with the nearest name for any other.
    """
    registered = dict(SAMPLE.items())
    if name in registered:
        return name
    for metric, entry in registered.items():
        if name in entry.gives or name in {_INCEPTION.get(suffix) for suffix in entry.gives}:
            return metric
    raise unknown(SAMPLE.kind, name, registered)


def _usable(metrics: Sequence[str], judge: Extractor, rules: Protocol) -> dict[str, SampleMetric]:
    """Return the metrics that the judge and the rules have, by name."""
    chosen = {name: SAMPLE.get(name) for name in metrics}
    has = {"features": True, "logits": judge.has_logits, "spatial": judge.has_spatial}
    return {name: metric for name, metric in chosen.items() if has[metric.needs] and name not in rules.without}


def _wanted(chosen: Mapping[str, SampleMetric], *, fake: bool) -> dict[str, set[str]]:
    """Return which kinds of features are kept by the row, and of which the moments are enough."""
    kinds = [metric for metric in chosen.values() if fake or metric.needs != "logits"]
    return {
        "keep": {metric.needs for metric in kinds if not metric.streams},
        "stream": {metric.needs for metric in kinds if metric.streams},
    }


def _values(
    name: str, metric: SampleMetric, real: Real, made: Gathered, other: Gathered | None, rules: Protocol, device: str
) -> dict[str, float]:
    """Return a metric's values and their standard errors (SUFFIX_stderr); NaN with its reason for what is missing."""
    reason = real.missing.get("rows" if metric.needs == "features" and not metric.streams else metric.needs)
    if reason is not None:
        return dict.fromkeys(metric.gives, undefined(f"left out: {reason}"))
    function, mine = rules.function(name), made.rows.get(metric.needs)
    given: list[Any] = [_reference_rows(metric, real, rules), mine]
    if metric.streams:
        given = [real.gaussian(metric.needs), made.moments[metric.needs]]
    if metric.held_out and other is not None:
        given.append(other.rows["features"])
    options = {"device": device} if "device" in inspect.signature(function).parameters else {}
    values = function(*given, **options)
    if metric.stderr is None or any(key.endswith("_stderr") for key in values):
        return values
    errors = metric.stderr(given[0], given[1] if mine is None else mine, values)
    return values | {f"{suffix}_stderr": error for suffix, error in errors.items()}


def _reference_rows(metric: SampleMetric, real: Real, rules: Protocol) -> Any:
    """Return the reference's features: of precision and recall as many, evenly spaced, as the rules allow."""
    rows, limit = real.seen.rows.get(metric.needs), rules.reference_images
    if metric.gives == ("precision", "recall") and rows is not None and limit is not None and len(rows) > limit:
        return rows[np.linspace(0, len(rows) - 1, limit).astype(np.int64)]
    return rows


def _note(metric: SampleMetric, value: float, made: Gathered) -> str | None:
    held = made.rows.get("features")
    width = held.shape[1] if held is not None else len(made.moments[metric.needs].mean) if metric.streams else 0
    notes = [few(made.n, width), metric.warns(made.n, width) if metric.warns else None, reason_of(value)]
    return "; ".join(dict.fromkeys(filter(None, notes))) or None
