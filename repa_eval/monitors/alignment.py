"""The layer x timestep map of alignment along training."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from repa_eval.diffusion.model import DiffusionModel
from repa_eval.diffusion.timesteps import TIMESTEPS
from repa_eval.evaluation.alignment import METRICS, Preparation, align
from repa_eval.evaluation.alignment import protocol as alignment_record
from repa_eval.features.model_input import model_input
from repa_eval.interfaces.images import held_out_images
from repa_eval.interfaces.monitor import Monitor, monitor
from repa_eval.monitors.shared.completeness import all_layers, is_complete
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
        timesteps: Sequence[float] = TIMESTEPS,
        metrics: Sequence[str] = MAP_METRICS,
        num_images: int | None = None,
    ) -> None:
        self.run, self.timesteps, self.metrics = run, timesteps, metrics
        self.images = held_out_images(run.data, num_images or MAP_IMAGES)

    def __call__(self, step: int, model: DiffusionModel) -> Iterable[Row]:
        """Return a row per teacher, timestep, layer and metric."""
        rows: list[Row] = []
        for teacher in self.run.reference_teachers:
            rows += align(
                model,
                teacher,
                self.images,
                layers=all_layers(model),
                timesteps=self.timesteps,
                metrics=self.metrics,
                capture=self.run.capture,
                columns=self.run.columns(step),
            )
        return rows

    def done(self, step: int, rows: Collection[Row]) -> bool:
        """Return whether the maps against all teachers are complete."""
        facts = {**self.run.network.record, **model_input(self.images, self.images.model_shape).record()}
        records = [
            {**alignment_record(teacher, self.images, self.run.capture, Preparation()), **facts}
            for teacher in self.run.reference_teachers
        ]
        layers = range(1, self.run.network.depth + 1)
        return is_complete(step, rows, records, self.metrics, layers, self.timesteps)
