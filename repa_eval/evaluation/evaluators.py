"""Sample quality by several extractors and under the rules of several evaluators: who computes what -> rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from repa_eval.data.readers.statistics import Statistics
from repa_eval.errors import UserError
from repa_eval.evaluation.evaluator_rules import PROTOCOLS, Protocol, protocol_named
from repa_eval.evaluation.reference import refuse_misfit
from repa_eval.evaluation.reference_features import ReferenceCache
from repa_eval.evaluation.sample_features import Workers
from repa_eval.evaluation.sample_quality import Memo, evaluate, metric_called, unmeasured
from repa_eval.interfaces.extractor import EXTRACTORS, Extractor, load_extractor
from repa_eval.interfaces.images import ImageSource
from repa_eval.interfaces.metric import SAMPLE
from repa_eval.results import SAMPLES, SAMPLES_HASH, Row
from repa_eval.sampling.sample_record import is_ours

# what tells one checkpoint from another is in the columns: a protocol is the same along a whole training curve
COLUMNS = ("run", "system", "method", "step", "weights", "train_seed")
NOT_IN_PROTOCOL = {*COLUMNS, "extractor", "data", "weights_hash", "batch_size", "num"} - {"weights"}


@dataclass(frozen=True)
class Evaluator:
    """The rules of a published evaluator, and the extractors that compute under them, by the name the user gave."""

    rules: Protocol
    extractors: Mapping[str, Extractor]

    def describe(self) -> str:
        """Return the rules in one line."""
        resize = ", ".join(f"{name} {extractor.resize}" for name, extractor in self.extractors.items())
        return f"protocol {self.rules.name}: resize {resize}, {self.rules.says()}"


def plan_metrics(metrics: Sequence[str], *, extractor: str | None, default: str) -> dict[str, list[str]]:
    """Return {extractor: metrics}, in the order given; a metric may name its own extractor: fd_dinov2, kid_digits.

    extractor: the user's choice. None: a metric that belongs to an extractor (cmmd: clip) is computed there, all others
    on `default`.
    """
    plan: dict[str, list[str]] = {}
    for name in metrics:
        base, named = _split(name)
        metric = metric_called(base)
        chosen = named or extractor or SAMPLE.get(metric).extractor or default
        plan.setdefault(chosen, [])
        if metric not in plan[chosen]:
            plan[chosen].append(metric)
    if not plan:
        raise UserError("no metrics are named; see `repa-eval list metrics`")
    return plan


def load_evaluators(
    protocol: str, extractors: Sequence[str], *, weights: Mapping[str, Path] | None = None, device: str = "cpu"
) -> list[Evaluator]:
    """Return the evaluators that `protocol` names ("all": every one), with their extractors opened on `device`.

    weights: files that replace the weights of extractors, by name.
    """
    files = weights or {}
    opened = {name: load_extractor(name, files.get(name)).to(device) for name in extractors}
    evaluators = []
    for rules in PROTOCOLS.values() if protocol == "all" else [protocol_named(protocol)]:
        replaced = {name: rules.extractors[name] for name in opened if name in rules.extractors}
        own = {name: load_extractor(other, files.get(name)).to(device) for name, other in replaced.items()}
        evaluators.append(Evaluator(rules, {**opened, **own}))
    return evaluators


def evaluate_all(
    fake: Any,
    reference: ImageSource | Statistics,
    evaluators: Sequence[Evaluator],
    plan: Mapping[str, Sequence[str]],
    *,
    record: Mapping[str, Any] | None = None,
    resize: int | None = None,
    held_out: ImageSource | None = None,
    batch_size: int = 256,
    workers: Workers | None = None,
    device: str = "cpu",
    cache: ReferenceCache | None = None,
) -> list[Row]:
    """Return the rows of generated images under every evaluator, for the metrics of `plan` (of `plan_metrics`).

    record: how the samples were made, as recorded beside them. resize: the side to which images were cropped. cache:
    where features of the reference are kept for later calls. The other arguments are those of `evaluate`; features are
    extracted once for all evaluators that read the same images.
    """
    shared: dict[str, Any] = {
        **_description(fake, record or {}, resize),
        "batch_size": batch_size,
        "held_out": held_out,
        "workers": workers,
        "device": device,
        "cache": cache,
    }
    memo: Memo = {}
    rows: list[Row] = []
    for evaluator in evaluators:
        for name, metrics in plan.items():
            extractor = evaluator.extractors[name]
            if isinstance(reference, Statistics):
                refuse_misfit(reference, extractor, fake.shape)
            rows += evaluate(fake, reference, extractor, metrics=metrics, rules=evaluator.rules, memo=memo, **shared)
    return rows


def expected_rows(
    fake: Any,
    reference: ImageSource | Statistics,
    evaluators: Sequence[Evaluator],
    plan: Mapping[str, Sequence[str]],
    *,
    record: Mapping[str, Any] | None = None,
    resize: int | None = None,
) -> list[Row]:
    """Return the rows that `evaluate_all` would make, without their values: what they are found by in a table."""
    described = _description(fake, record or {}, resize)
    rows: list[Row] = []
    for evaluator in evaluators:
        for name, metrics in plan.items():
            extractor, rules = evaluator.extractors[name], evaluator.rules
            rows += unmeasured(fake, reference, extractor, metrics=metrics, rules=rules, **described)
    return rows


def _description(fake: Any, record: Mapping[str, Any], resize: int | None) -> dict[str, Any]:
    """Return the protocol entries and the columns of rows on samples: who made them, else their name and content."""
    protocol = {key: value for key, value in record.items() if key not in NOT_IN_PROTOCOL}
    if not is_ours(record):
        protocol |= {SAMPLES: PurePath(fake.name).name, SAMPLES_HASH: fake.digest()}
    if resize:
        protocol["input_resize"] = f"centre-crop-{resize}"
    columns = {**{key: record.get(key) for key in COLUMNS}, "seed": record.get("sampler_seed")}
    return {"protocol": protocol, "columns": columns}


def _split(name: str) -> tuple[str, str | None]:
    """Return (metric, extractor) of fd_dinov2, (metric, None) of a plain name."""
    if name in SAMPLE.names():
        return name, None
    for extractor in sorted(EXTRACTORS.names(), key=len, reverse=True):
        if name.endswith(f"_{extractor}") and name != extractor:
            return name.removesuffix(f"_{extractor}"), extractor
    return name, None
