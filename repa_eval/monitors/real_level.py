"""The Frechet distance of real images to the reference: the level that samples can reach."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable

from repa_eval.diffusion.model import DiffusionModel
from repa_eval.evaluation.sample_quality import evaluate
from repa_eval.interfaces.extractor import load_extractor
from repa_eval.interfaces.images import load_data
from repa_eval.interfaces.monitor import Monitor, monitor
from repa_eval.monitors.shared.run import EvaluatedRun
from repa_eval.results import Row


@monitor("real_level", order=20, needs=("samples", "end of training"), in_training="never")
class RealLevel(Monitor):
    """The Frechet distance of real training images to the reference, once after the last step."""

    def __init__(self, run: EvaluatedRun) -> None:
        self.run = run
        self.train, self.reference = (load_data(run.data, split) for split in ("train", "reference"))
        self.extractor = load_extractor(run.extractor).to(run.device)

    def __call__(self, step: int, model: DiffusionModel) -> Iterable[Row]:
        """Return the rows, named `<metric>_floor`, without a step: one per number of samples."""
        if not self.run.is_last(step):
            return []
        rows = []
        for count in self._counts():
            # the reference is the head of the training images: the images after it are used
            others = self.train.part(len(self.reference), len(self.reference) + count)
            record = {"samples": "real training images outside the reference"}
            measured = evaluate(
                others,
                self.reference,
                self.extractor,
                metrics=("fd",),
                protocol=record,
                columns={"run": self.run.name},
            )
            rows += [dataclasses.replace(row, metric=f"{row.metric}_floor") for row in measured]
        return rows

    def done(self, step: int, rows: Collection[Row]) -> bool:
        """Return whether the table holds the level for every number of samples."""
        present = {row.n for row in rows if row.metric.endswith("_floor")}
        return not self.run.is_last(step) or present >= set(self._counts())

    def _counts(self) -> list[int]:
        if len(self.train) <= len(self.reference):  # a folder without splits: no image lies outside the reference
            return []
        assert self.run.last_step is not None
        return [samples.num_samples for samples in self.run.rounds(self.run.last_step)]
