"""Whether samples of the last step copy training images."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from repa_eval.diffusion.model import DiffusionModel
from repa_eval.evaluation.nearest_images import nearest_picture
from repa_eval.evaluation.sample_quality import evaluate, names_of, record_of
from repa_eval.interfaces.extractor import load_extractor
from repa_eval.interfaces.images import load_data
from repa_eval.interfaces.monitor import Monitor, monitor
from repa_eval.monitors.shared.pictures import write_grid
from repa_eval.monitors.shared.run import EvaluatedRun
from repa_eval.monitors.shared.samples import draw
from repa_eval.results import Row, protocol_hash
from repa_eval.sampling.generate import SamplerSettings

METRICS = ("memorisation", "authpct")
SEARCHED = 50_000  # training images among which copies are searched


@monitor("copies", order=30, needs=("samples", "end of training"), in_training="never")
class Copies(Monitor):
    """C_T, AuthPct and the nearest training images of the regular samples, once after the last step.

    media/neighbours-<step>.png shows the samples that are most like a training image.
    """

    shared = True

    def __init__(self, run: EvaluatedRun) -> None:
        self.run = run
        train = load_data(run.data, "train")
        self.train, self.held_out = train.head(min(SEARCHED, len(train))), load_data(run.data, "test")
        self.extractor = load_extractor(run.extractor).to(run.device)
        self.extractor.prepare(self.train)

    def __call__(self, step: int, model: DiffusionModel) -> Iterable[Row]:
        """Return the rows and write the picture."""
        if not self.run.is_last(step):
            return []
        sampler, processes = self._sampler(), self.run.processes
        samples = draw(model, self.run.regular.num_samples, sampler, processes)
        rows = evaluate(
            samples,
            self.train,
            self.extractor,
            metrics=METRICS,
            protocol=self._record(sampler),
            columns={**self.run.columns(step), "seed": sampler.seed},
            held_out=self.held_out,
            workers=processes,
        )
        grid = nearest_picture(samples, self.train, self.extractor, workers=processes)
        if grid is not None:
            write_grid(self.run.picture("neighbours", step), *grid)
        return rows

    def done(self, step: int, rows: Collection[Row]) -> bool:
        """Return whether the table holds every number and the picture exists."""
        if not self.run.is_last(step):
            return True
        record = record_of(self.extractor, self.train, self.run.regular.num_samples, self._record(self._sampler()))
        protocol = protocol_hash(record)
        present = {row.metric for row in rows if row.step == step and row.protocol == protocol}
        return self.run.picture("neighbours", step).is_file() and present >= set(names_of(METRICS, self.extractor))

    def _sampler(self) -> SamplerSettings:
        return self.run.sampler(self.run.regular.num_steps)

    def _record(self, sampler: SamplerSettings) -> dict[str, Any]:
        held_out = {"held_out": self.held_out.name, "held_out_hash": self.held_out.digest()}
        return {**self.run.sample_record(sampler), **held_out}
