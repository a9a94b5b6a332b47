"""What `fid` measures samples with: extractors under the rules of evaluators, and a reference, each opened once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repa_eval import results
from repa_eval.commands.shared.quality_options import QualityOptions
from repa_eval.commands.shared.sample_sets import SampleSet
from repa_eval.console.options import ComputeOptions
from repa_eval.errors import Failure, UserError
from repa_eval.results import Row

if TYPE_CHECKING:
    from repa_eval.evaluation.evaluators import Evaluator
    from repa_eval.evaluation.reference_features import ReferenceCache
    from repa_eval.runtime.distributed import Share


@dataclass(frozen=True)
class Judges:
    """Who measures which metrics (`plan_metrics`), and the reference."""

    evaluators: Sequence[Evaluator]
    plan: Mapping[str, Sequence[str]]
    reference: Any

    @property
    def several_rules(self) -> bool:
        """Whether the samples are measured under the rules of several evaluators."""
        return len(self.evaluators) > 1

    def describe(self) -> str:
        """Return extractors and reference in words."""
        reference = self.reference
        of_images = hasattr(reference, "__len__")
        size = f"{len(reference)} images" if of_images else f"statistics of {reference.n or '?'} images"
        return f"extractor {', '.join(self.plan)}, reference {reference.name} ({size})"

    def rules(self) -> list[str]:
        """Return the rules of each evaluator in a line."""
        return [evaluator.describe() for evaluator in self.evaluators]


@dataclass
class Judging:
    """Opens what measures samples, and measures them. cache: of the reference's features."""

    quality: QualityOptions
    compute: ComputeOptions
    cache: ReferenceCache | None
    share: Share
    _references: dict[str, Any] = field(default_factory=dict)
    _opened: dict[tuple[str, str], Judges] = field(default_factory=dict)

    def judges(self, samples: SampleSet) -> Judges:
        """Return what a set of samples is measured with; sets that name the same share it."""
        from repa_eval.evaluation.evaluators import load_evaluators, plan_metrics

        quality, name = self.quality, self.quality.reference or str(samples.record.get("data"))
        default = quality.extractor or samples.extractor or "inception"
        if name not in self._references:
            self._references[name] = quality.open_reference(samples.record)
        if (name, default) not in self._opened:
            plan = plan_metrics(quality.names(), extractor=quality.extractor, default=default)
            evaluators = load_evaluators(
                quality.protocol, list(plan), weights=quality.weights(default), device=self.share.device
            )
            self._opened[name, default] = Judges(evaluators, plan, self._references[name])
        return self._opened[name, default]

    def open(self, samples: SampleSet) -> Any:
        """Return the images of a set, which is complete."""
        from repa_eval.data.readers.image_files import open_images
        from repa_eval.sampling.sample_record import check_complete

        fake = open_images(samples.path, resize=self.quality.resize)
        check_complete(samples.path, samples.record, len(fake))
        return fake

    def rows(self, fake: Any, samples: SampleSet, judges: Judges) -> list[Row]:
        """Return the rows of a set, in the first process; UserError where the extractors give none of the metrics."""
        from repa_eval.evaluation.evaluators import evaluate_all

        rows = evaluate_all(
            fake,
            judges.reference,
            judges.evaluators,
            judges.plan,
            record=samples.record,
            resize=self.quality.resize,
            held_out=self.quality.open_held_out(),
            batch_size=self.compute.batch_size,
            workers=self.share,
            device=self.share.device,
            cache=self.cache,
        )
        if self.share.first and not rows:
            names = ", ".join(judges.plan)
            raise UserError(f"extractor {names} gives none of the metrics {self.quality.metrics}")
        return rows

    def missing_rows(self, samples: SampleSet, judges: Judges, table: Path | None) -> list[Row]:
        """Return the rows of a set: those that the table holds, else measured ones, which are added to it."""
        fake = self.open(samples)
        held, fault = self.share.agree(self._look(fake, samples, judges, table) if self.share.first else None)
        if fault is not None:  # in every process, so that none waits for the others
            raise Failure(fault)
        if held:
            return list(held)
        rows = self.rows(fake, samples, judges)
        if table is not None and self.share.first:
            results.append(table, rows)
        return rows

    def _look(self, fake: Any, samples: SampleSet, judges: Judges, table: Path | None) -> tuple[list[Row], str | None]:
        """Return the rows of a set that the table holds, none unless it holds all, and why it cannot be measured."""
        from repa_eval.evaluation.evaluators import expected_rows

        try:
            fake.digest()  # reads all of it
            expected = expected_rows(
                fake,
                judges.reference,
                judges.evaluators,
                judges.plan,
                record=samples.record,
                resize=self.quality.resize,
            )
            there = {} if table is None else rows_of(table)
        except UserError as error:
            return [], str(error)
        found = [there[row.key()] for row in expected if row.key() in there]
        records = results.records_of(expected)
        return [with_record(row, records) for row in found] if len(found) == len(expected) else [], None


def rows_of(table: Path) -> dict[tuple[Any, ...], Row]:
    """Return the rows of a table by their keys; none where there is no table yet."""
    return {row.key(): row for row in results.read(table)} if results.table_path(table).is_file() else {}


def with_record(row: Row, records: Mapping[str, Mapping[str, Any]]) -> Row:
    """Return a row with the record of its protocol."""
    return replace(row, record=records.get(row.protocol or ""))
