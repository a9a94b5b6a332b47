"""What `fid` and `stats` share: extractors, their weights, references and protocols from the words of a command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from repa_eval.errors import UserError

METRICS = "fd,sfd,inception_score,precision_recall"


def weights_by_extractor(given: Sequence[str], main: str) -> dict[str, Path]:
    """Return {extractor: file} of --extractor-weights FILE (that of `main`) and NAME=FILE."""
    found: dict[str, Path] = {}
    for text in given:
        name, equals, file = text.partition("=")
        found[name if equals else main] = Path(file if equals else text)
    return found


def judges_of(metrics: str, extractor: str | None, default: str) -> dict[str, list[str]]:
    """Return {extractor: metrics}, in the order given; a metric may name its own: fd_dinov2, kid_digits.

    extractor: what the user chose, None for none: then a metric that has a home (cmmd: clip) goes there.
    """
    from repa_eval.evaluation.sample_quality import metric_called
    from repa_eval.interfaces.extractor import EXTRACTORS
    from repa_eval.interfaces.metric import SAMPLE

    plan: dict[str, list[str]] = {}
    for name in filter(None, (part.strip() for part in metrics.split(","))):
        base, place = _split(name, EXTRACTORS.names())
        metric = metric_called(base)
        judge = place or extractor or SAMPLE.get(metric).extractor or default
        plan.setdefault(judge, [])
        if metric not in plan[judge]:
            plan[judge].append(metric)
    if not plan:
        raise UserError("--metrics names none; see `repa-eval list metrics`")
    return plan


def open_reference(given: str | None, made: Mapping[str, Any], samples: Path, resize: int | None) -> Any:
    """Return the reference named by the user (images, statistics or data), else the data beside the samples."""
    from repa_eval.interfaces.images import DATA, load_data

    name = given or made.get("data")
    if not name:
        raise UserError(
            f"{samples} names no reference: add --reference DIR, --reference FILE.npz or --reference digits"
        )
    if Path(name).exists():
        return open_source(Path(name), resize)
    if name.partition(":")[0] not in DATA.names():
        raise UserError(f"reference {name!r} is no folder, .zip, .npz or data ({', '.join(DATA.names())})")
    return load_data(name, "reference")


def open_source(path: Path, resize: int | None) -> Any:
    """Return the statistics in a file, or its images."""
    from repa_eval.data.readers.image_files import open_images
    from repa_eval.data.readers.statistics import open_statistics

    return open_statistics(path) or open_images(path, resize=resize)


def protocols_named(name: str) -> list[Any]:
    """Return the protocols that --protocol names."""
    from repa_eval.evaluation.evaluator_rules import PROTOCOLS, protocol_named

    return list(PROTOCOLS.values()) if name == "all" else [protocol_named(name)]


def _split(name: str, extractors: Sequence[str]) -> tuple[str, str | None]:
    from repa_eval.interfaces.metric import SAMPLE

    if name in SAMPLE.names():
        return name, None
    for extractor in sorted(extractors, key=len, reverse=True):
        if name.endswith(f"_{extractor}") and name != extractor:
            return name.removesuffix(f"_{extractor}"), extractor
    return name, None
