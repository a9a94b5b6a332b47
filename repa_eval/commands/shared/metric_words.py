"""What the report says of each number: gathered from where metrics, probes, captions and training declare it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Words = Mapping[str, Any]


def metric_words() -> dict[str, Words]:
    """Return name -> {"better", "meaning", "kind"} for every registered metric and every other number that we store.

    A name also stands for the names that begin with it and an underscore: "fd" for "fd_dinov2".
    """
    from repa_eval.evaluation import captions
    from repa_eval.train import writer

    result = dict(_of_registries()) | dict(_of_probes())
    for kind, table in (("captions", captions.MEANINGS), ("training", writer.MEANINGS)):
        result |= {name: _words(better, meaning, kind) for name, (better, meaning) in table.items()}
    return result


def _of_registries() -> Iterator[tuple[str, Words]]:
    from repa_eval.evaluation.sample_quality import metric_name
    from repa_eval.interfaces.metric import ALIGNMENT, SAMPLE, SPATIAL

    for name, metric in ALIGNMENT.items():
        yield name, _words(metric.better, metric.meaning, "alignment")
    for name, spatial in SPATIAL.items():
        yield name, _words(spatial.better, spatial.meaning, "structure")
    for _, sample in SAMPLE.items():
        suffixes = {name: sample.gives[0] for name in sample.meaning}  # a further name, such as fd_pixel_pca
        suffixes |= {metric_name(suffix, "inception"): suffix for suffix in sample.gives}
        suffixes |= {suffix: suffix for suffix in sample.gives}
        for name, suffix in suffixes.items():
            meaning = sample.meaning.get(name, sample.meaning[suffix])
            yield name, _words(sample.better[suffix], meaning, "sample quality")


def _of_probes() -> Iterator[tuple[str, Words]]:
    from repa_eval.probes.kinds import KINDS

    for kind in KINDS.values():
        yield kind.metric, _words("higher", kind.meaning, "probe")


def _words(better: str | None, meaning: str, kind: str) -> Words:
    return {"better": better, "meaning": meaning, "kind": kind}
