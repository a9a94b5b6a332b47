"""Sample quality of a run along its training."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from repa_eval.diffusion.model import DiffusionModel
from repa_eval.evaluation.sample_quality import evaluate, names_of, record_of
from repa_eval.interfaces.extractor import Extractor, load_extractor
from repa_eval.interfaces.images import Images, load_data
from repa_eval.interfaces.monitor import Monitor, monitor
from repa_eval.monitors.shared.run import EvaluatedRun
from repa_eval.monitors.shared.samples import draw
from repa_eval.results import Row, protocol_hash
from repa_eval.sampling.generate import SamplerSettings
from repa_eval.sampling.sample_files import save_npz
from repa_eval.sampling.sample_record import record_path

METRICS = ("fd", "inception_score", "precision_recall")


@monitor("sample_quality", order=10, needs=("samples",))
class SampleQuality(Monitor):
    """Sample quality on the recipe's extractor, and on pixels as a second opinion."""

    shared = True

    def __init__(self, run: EvaluatedRun) -> None:
        self.run = run
        self.reference = load_data(run.data, "reference")
        self.extractors: list[tuple[Extractor, Sequence[str]]] = [
            (load_extractor(run.extractor).to(run.device), METRICS),
            (load_extractor("pixel_pca"), ("fd",)),
        ]
        for extractor, _ in self.extractors:
            extractor.prepare(self.reference)

    def __call__(self, step: int, model: DiffusionModel) -> Iterable[Row]:
        """Return the rows of every round of samples and every extractor."""
        rows, processes = [], self.run.processes
        for samples in self.run.rounds(step):
            sampler = self.run.sampler(samples.num_steps)
            images = draw(model, samples.num_samples, sampler, processes)
            if self.run.keep_samples and samples is self.run.regular and processes.first:
                self._keep(step, images, sampler)
            for extractor, metrics in self.extractors:
                rows += evaluate(
                    images,
                    self.reference,
                    extractor,
                    metrics=metrics,
                    protocol=self.run.sample_record(sampler),
                    columns={**self.run.columns(step), "seed": sampler.seed},
                    workers=processes,
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

    def _keep(self, step: int, images: Images, sampler: SamplerSettings) -> None:
        """Write RUN/samples/<step>.npz, and delete all but the newest `keep_samples` of these files."""
        folder = self.run.folder / "samples"
        origin = {"data": self.run.data, "extractor": self.run.extractor}
        record = {**self.run.columns(step), **origin, **self.run.sample_record(sampler)}
        save_npz(folder / f"{step:07d}.npz", images.images, images.labels, record)
        for file in sorted(folder.glob("[0-9]*.npz"))[: -self.run.keep_samples]:
            record_path(file).unlink(missing_ok=True)
            file.unlink()
