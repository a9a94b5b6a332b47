"""`repa-eval fid`: quality of generated images against a reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from repa_eval.commands.shared.judging import Judges, Judging
from repa_eval.commands.shared.quality_options import (
    QualityOptions,
    ReferenceCacheOptions,
    quality_options,
    reference_cache_options,
)
from repa_eval.commands.shared.sample_sets import SampleSet, is_curve, sample_sets
from repa_eval.console.app import Command, example
from repa_eval.console.options import ComputeOptions, RowsOptions, compute_options, rows_options
from repa_eval.console.tables import deliver, table
from repa_eval.errors import Failure, UserError, first_line, one_line
from repa_eval.results import SAMPLES, SAMPLES_HASH, Row, records_of
from repa_eval.runtime.device import choose_device
from repa_eval.runtime.files import write_atomic


@click.command(cls=Command, short_help="Score generated images (FID, IS, ...)")
@quality_options
@compute_options
@reference_cache_options
@rows_options
@example("repa-eval fid --samples samples")
def command(
    quality: QualityOptions, compute: ComputeOptions, cache: ReferenceCacheOptions, output: RowsOptions
) -> None:
    """Measure Frechet distance, inception score, precision and recall of generated images.

    The metric name says which network judged the samples: fid, sfid, inception_score, precision, recall are
    Inception's; fd_digits, is_digits, precision_digits, recall_digits are those of the extractor `digits`. A folder of
    .npz files (0050000.npz, or as the official scripts name them) is one curve: it is measured file by file, and what
    the table of --rows holds already is not measured again. Under `accelerate launch` or torchrun every process takes
    its share of the images; the numbers are the same.
    """
    from repa_eval.runtime.distributed import join

    sets = sample_sets(quality)
    judging = Judging(quality, compute, cache.open(), join(choose_device(compute.device)))
    if is_curve(quality.samples):
        _measure_curve(sets, judging, output)
    else:
        _measure_one(sets[0], judging, output)


def _measure_one(samples: SampleSet, judging: Judging, output: RowsOptions) -> None:
    fake = judging.open(samples)
    judges = judging.judges(samples)
    rows = judging.rows(fake, samples, judges)
    if judging.share.first:
        deliver(rows, output, show=lambda shown: _show(shown, judges))
    picture = judging.quality.neighbours
    if picture is not None:
        extractor = next(iter(judges.evaluators[0].extractors.values()))
        _write_neighbours(picture, fake, judges.reference, extractor, judging.compute.batch_size, judging.share)


def _measure_curve(sets: Sequence[SampleSet], judging: Judging, output: RowsOptions) -> None:
    """Measure the sets that the table lacks, one after another; Failure that names those that cannot be measured."""
    judges = [judging.judges(samples) for samples in sets]  # all of them before anything is measured
    rows: list[Row] = []
    bad: dict[str, list[str]] = {}  # reason -> files
    for samples, chosen in zip(sets, judges, strict=True):
        try:
            found = judging.missing_rows(samples, chosen, output.rows)
        except UserError as error:
            bad.setdefault(first_line(error), []).append(samples.path.name)
            continue
        rows += found
    if not judging.share.first:
        return
    if rows:
        deliver(rows, RowsOptions(as_json=output.as_json), show=lambda shown: _show_curve(shown, judges[0]))
    if bad:
        count = sum(map(len, bad.values()))
        names = "; ".join(f"{', '.join(files)} ({reason})" for reason, files in bad.items())
        raise Failure(f"{judging.quality.samples}: {count} of {len(sets)} files were not measured: {names}")


def _write_neighbours(file: Path, fake: Any, reference: Any, extractor: Any, batch_size: int, share: Any) -> None:
    """Write the picture of samples and their nearest real images; one of several processes does."""
    from repa_eval.evaluation.nearest_images import nearest_picture

    images = getattr(reference, "images", None) if hasattr(reference, "provenance") else reference
    if images is None:
        raise UserError(f"--neighbours needs real images, and {reference.name} has none (arr_0)")
    picture = nearest_picture(fake, images, extractor, batch_size=batch_size, workers=share)
    if picture is not None:
        write_atomic(file, picture[0])


def _show(rows: Sequence[Row], judges: Judges) -> str:
    record = next(iter(records_of(rows).values()))
    samples = f"samples {record[SAMPLES]} ({record[SAMPLES_HASH]}), " if SAMPLES_HASH in record else ""
    return "\n".join([f"{samples}n={rows[0].n}, {judges.describe()}", *judges.rules(), _table(rows), *_notes(rows)])


def _show_curve(rows: Sequence[Row], judges: Judges) -> str:
    """Return the numbers of a curve: a line for every set of samples and protocol, a column for every metric."""
    records = records_of(rows)
    names = list(dict.fromkeys(row.metric for row in rows))
    lines: dict[tuple[object, ...], dict[str, float | None]] = {}
    for row in rows:
        record = records[row.protocol or ""]
        rules = record.get("rules", "-") if judges.several_rules else None
        line = (row.step, record.get(SAMPLES, "-"), row.n, *filter(None, [rules]))
        lines.setdefault(line, {})[row.metric] = row.value
    header = ["step", "samples", "n", *(["rules"] if judges.several_rules else []), *names]
    body = [
        ["-" if line[0] is None else line[0], *line[1:], *(_number(values.get(name)) for name in names)]
        for line, values in lines.items()
    ]
    return "\n".join([judges.describe(), *judges.rules(), table(header, body), *_notes(rows)])


def _notes(rows: Sequence[Row]) -> list[str]:
    return sorted({f"note: {one_line(row.note)}" for row in rows if row.note})


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
