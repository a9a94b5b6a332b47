"""Sample quality of a run along its training."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from repa_eval.data.readers.statistics import Statistics
from repa_eval.diffusion.model import DiffusionModel
from repa_eval.evaluation.sample_quality import evaluate, names_of, record_of
from repa_eval.interfaces.image_source import ImageSource
from repa_eval.interfaces.monitor import Monitor, monitor
from repa_eval.interfaces.sampler import SamplerSettings
from repa_eval.monitors.shared.run import EvaluatedRun
from repa_eval.results import Row, protocol_hash


@monitor("sample_quality", order=10, needs=("samples",))
class SampleQuality(Monitor):
    """Sample quality on the recipe's extractor, and on pixels as a second opinion."""

    shared = True

    def __init__(self, run: EvaluatedRun) -> None:
        self.run, self.reference, self.extractors = run, run.reference, run.judges
        for extractor, _ in self.extractors:
            if not isinstance(self.reference, Statistics):
                extractor.prepare(self.reference)

    def __call__(self, step: int, model: DiffusionModel) -> Iterable[Row]:
        """Return the rows of every round of samples and every extractor."""
        rows: list[Row] = []
        for samples in self.run.rounds(step):
            sampler = self.run.sampler(samples.num_steps)
            with self.run.samples(step, model, samples) as images:
                rows += self._rows(step, images, sampler)
        return rows

    def _rows(self, step: int, images: ImageSource, sampler: SamplerSettings) -> list[Row]:
        rows = []
        for extractor, metrics in self.extractors:
            rows += evaluate(
                images,
                self.reference,
                extractor,
                metrics=metrics,
                protocol=self.run.sample_record(sampler),
                columns={**self.run.columns(step), "seed": sampler.seed},
                batch_size=self.run.batch_size,
                workers=self.run.processes,
                device=self.run.device,
                cache=self.run.reference_cache,
            )
        return rows

    def done(self, step: int, rows: Collection[Row]) -> bool:
        """Return whether the table holds every number of every round."""
        present = {(row.metric, row.protocol) for row in rows if row.step == step}
        expected = set()
        for samples in self.run.rounds(step):
            record = self.run.sample_record(self.run.sampler(samples.num_steps))
            for extractor, metrics in self.extractors:
                protocol = protocol_hash(record_of(extractor, self.reference, samples.num_samples, record))
                expected |= {(name, protocol) for name in names_of(metrics, extractor)}
        return expected <= present
