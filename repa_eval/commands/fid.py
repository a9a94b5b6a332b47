"""`repa-eval fid`: quality of generated images against a reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repa_eval.commands.shared.quality_options import QualityOptions, quality_options
from repa_eval.console.app import Command, example
from repa_eval.console.options import ComputeOptions, RowsOptions, compute_options, rows_options
from repa_eval.console.tables import deliver, table
from repa_eval.errors import UserError, one_line
from repa_eval.results import Row, records_of
from repa_eval.runtime.device import choose_device
from repa_eval.runtime.files import write_atomic

if TYPE_CHECKING:
    from repa_eval.evaluation.evaluators import Evaluator


@click.command(cls=Command, short_help="Score generated images (FID, IS, ...)")
@quality_options
@compute_options
@rows_options
@example("repa-eval fid --samples samples")
def command(quality: QualityOptions, compute: ComputeOptions, output: RowsOptions) -> None:
    """Measure Frechet distance, inception score, precision and recall of generated images.

    The metric name says which network judged the samples: fid, sfid, inception_score, precision, recall are
    Inception's; fd_digits, is_digits, precision_digits, recall_digits are those of the extractor `digits`. Under
    `accelerate launch` or torchrun every process takes its share of the images; the numbers are the same.
    """
    from repa_eval.data.readers.image_files import open_images
    from repa_eval.evaluation.evaluators import evaluate_all, load_evaluators, plan_metrics
    from repa_eval.interfaces.recorded_names import recorded_extractor
    from repa_eval.runtime.distributed import join
    from repa_eval.sampling.sample_record import check_complete, read_record

    share = join(choose_device(compute.device))
    record = read_record(quality.samples) or {}
    default = quality.extractor or recorded_extractor(record.get("extractor"), quality.samples) or "inception"
    fake = open_images(quality.samples, resize=quality.resize)
    check_complete(quality.samples, record, len(fake))
    reference = quality.open_reference(record)
    plan = plan_metrics(quality.names(), extractor=quality.extractor, default=default)
    evaluators = load_evaluators(quality.protocol, list(plan), weights=quality.weights(default), device=share.device)
    rows = evaluate_all(
        fake,
        reference,
        evaluators,
        plan,
        record=record,
        resize=quality.resize,
        held_out=quality.open_held_out(),
        batch_size=compute.batch_size,
        workers=share,
        device=share.device,
    )
    if share.first:
        if not rows:
            raise UserError(f"extractor {default} gives none of the metrics {quality.metrics}")
        deliver(rows, output, show=lambda shown: _show(shown, ", ".join(plan), reference, evaluators))
    if quality.neighbours is not None:
        extractor = next(iter(evaluators[0].extractors.values()))
        _write_neighbours(quality.neighbours, fake, reference, extractor, compute.batch_size, share)


def _write_neighbours(file: Path, fake: Any, reference: Any, extractor: Any, batch_size: int, share: Any) -> None:
    """Write the picture of samples and their nearest real images; one of several processes does."""
    from repa_eval.evaluation.nearest_images import nearest_picture

    images = getattr(reference, "images", None) if hasattr(reference, "provenance") else reference
    if images is None:
        raise UserError(f"--neighbours needs real images, and {reference.name} has none (arr_0)")
    picture = nearest_picture(fake, images, extractor, batch_size=batch_size, workers=share)
    if picture is not None:
        write_atomic(file, picture[0])


def _show(rows: Sequence[Row], extractors: str, reference: Any, evaluators: Sequence[Evaluator]) -> str:
    count = (
        f"{len(reference)} images" if hasattr(reference, "__len__") else f"statistics of {reference.n or '?'} images"
    )
    title = f"n={rows[0].n}, extractor {extractors}, reference {reference.name} ({count})"
    notes = sorted({f"note: {one_line(row.note)}" for row in rows if row.note})
    return "\n".join([title, *(evaluator.describe() for evaluator in evaluators), _table(rows), *notes])


def _table(rows: Sequence[Row]) -> str:
    """Return the numbers, those of several protocols side by side."""
    columns = list(dict.fromkeys(row.protocol for row in rows))
    groups = _by_rules(rows)
    if len(groups) == 1 or len(columns) == 1:
        return table(
            ["metric", "value", "stderr"], [[row.metric, _number(row.value), _number(row.stderr)] for row in rows]
        )
    names = list(dict.fromkeys(row.metric for row in rows))
    body = []
    for name in names:
        found = [{row.metric: row.value for row in group}.get(name) for group in groups.values()]
        body.append([name, *map(_number, found)])
    return table(["metric", *groups], body)


def _by_rules(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows by the evaluator whose rules they were taken under."""
    records = records_of(rows)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(records[row.protocol or ""].get("rules", "adm"), []).append(row)
    return groups


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
