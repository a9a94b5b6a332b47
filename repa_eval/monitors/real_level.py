"""The Frechet distance of real images to the reference: the level that samples can reach."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable

from repa_eval.diffusion.model import DiffusionModel
from repa_eval.evaluation.sample_quality import evaluate
from repa_eval.interfaces.extractor import load_extractor
from repa_eval.interfaces.images import load_data
from repa_eval.interfaces.monitor import Measure
from repa_eval.monitors.shared.run import Subject
from repa_eval.results import Row


class Floor(Measure):
    """Once, after the last step: real training images against the reference, the level that samples can reach."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.train, self.reference = (load_data(subject.data, split) for split in ("train", "reference"))
        self.judge = load_extractor(subject.recipe.settings.evaluation.extractor).to(subject.device)

    def __call__(self, step: int, model: DiffusionModel) -> Iterable[Row]:
        """Return the rows, named `<metric>_floor`, without a step."""
        if not self.subject.is_last(step):
            return []
        rows = []
        for count in self._counts():
            # the reference is the head of the training images: take others
            others = self.train.part(len(self.reference), len(self.reference) + count)
            columns = {"run": self.subject.run.resolve().name}
            record = {"samples": "real training images outside the reference"}
            measured = evaluate(others, self.reference, self.judge, metrics=("fd",), protocol=record, columns=columns)
            rows += [dataclasses.replace(row, metric=f"{row.metric}_floor") for row in measured]
        return rows

    def done(self, step: int, rows: Collection[Row]) -> bool:
        """Return whether the level was measured for every number of samples."""
        known = {row.n for row in rows if row.metric.endswith("_floor")}
        return not self.subject.is_last(step) or known >= set(self._counts())

    def _counts(self) -> list[int]:
        settings = self.subject.recipe.settings.evaluation
        return [count for count in (settings.num_samples, settings.final_samples) if count]
