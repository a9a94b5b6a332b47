"""The layer x timestep map of alignment along training."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from repa_eval.diffusion.model import DiffusionModel
from repa_eval.evaluation.alignment import METRICS, Preparation, align, target_of
from repa_eval.evaluation.alignment import protocol as alignment_record
from repa_eval.features.model_input import model_input
from repa_eval.interfaces.monitor import Monitor, monitor
from repa_eval.metrics.shared.prepared import Prepared
from repa_eval.monitors.shared.completeness import is_complete
from repa_eval.monitors.shared.run import EvaluatedRun
from repa_eval.results import Row

MAP_IMAGES = 600
MAP_METRICS = (*METRICS, "mutual_knn")


@monitor("alignment", order=70, needs=("teachers",), in_training="never")
class AlignmentMap(Monitor):
    """Alignment of every layer at every timestep with each teacher."""

    def __init__(
        self,
        run: EvaluatedRun,
        *,
        timesteps: Sequence[float] | None = None,
        metrics: Sequence[str] = MAP_METRICS,
        num_images: int | None = None,
    ) -> None:
        self.run, self.metrics = run, metrics
        self.timesteps = run.timesteps if timesteps is None else timesteps
        self.images = run.images(num_images or MAP_IMAGES)
        self.targets: dict[str, Prepared] = {}  # the teachers' features, by digest: of all checkpoints

    def __call__(self, step: int, model: DiffusionModel) -> Iterable[Row]:
        """Return a row per teacher, timestep, layer and metric."""
        rows: list[Row] = []
        for teacher in self.run.reference_teachers:
            if teacher.digest not in self.targets:
                self.targets[teacher.digest] = target_of(teacher, self.images, Preparation(), self.run.capture)
            rows += align(
                model,
                teacher,
                self.images,
                layers=self.run.layers,
                timesteps=self.timesteps,
                metrics=self.metrics,
                capture=self.run.capture,
                target=self.targets[teacher.digest],
                columns=self.run.columns(step),
            )
        return rows

    def done(self, step: int, rows: Collection[Row]) -> bool:
        """Return whether the maps against all teachers are complete."""
        reads = model_input(self.images, self.images.model_shape, self.run.capture.latents)
        facts = {**self.run.network.record, **reads.record()}
        records = [
            {**alignment_record(teacher, self.images, self.run.capture, Preparation()), **facts}
            for teacher in self.run.reference_teachers
        ]
        return is_complete(step, rows, records, self.metrics, self.run.layers, self.timesteps)
