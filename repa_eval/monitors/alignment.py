"""The layer x timestep map of alignment along training."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from repa_eval.diffusion.model import DiffusionModel
from repa_eval.diffusion.timesteps import TIMESTEPS
from repa_eval.evaluation.alignment import METRICS, Preparation, align
from repa_eval.evaluation.alignment import protocol as alignment_record
from repa_eval.features.hidden_states import model_record
from repa_eval.interfaces.images import unseen_images
from repa_eval.interfaces.monitor import Measure
from repa_eval.interfaces.teacher import Teacher, load_teacher
from repa_eval.monitors.shared.completeness import all_layers, is_complete
from repa_eval.monitors.shared.run import Subject
from repa_eval.results import Row

MAP_IMAGES = 600


class AlignmentMap(Measure):
    """The whole layer x timestep map against each teacher."""

    def __init__(
        self,
        subject: Subject,
        teachers: Sequence[str],
        *,
        timesteps: Sequence[float] = TIMESTEPS,
        metrics: Sequence[str] = METRICS,
        num_images: int = MAP_IMAGES,
    ) -> None:
        self.subject, self.timesteps, self.metrics = subject, timesteps, metrics
        self.images = unseen_images(subject.data, num_images)
        self.teachers: list[Teacher] = [load_teacher(name).to(subject.device) for name in teachers]

    def __call__(self, step: int, model: DiffusionModel) -> Iterable[Row]:
        """Return a row per teacher, timestep, layer and metric."""
        rows: list[Row] = []
        for teacher in self.teachers:
            rows += align(
                model,
                teacher,
                self.images,
                layers=all_layers(model),
                timesteps=self.timesteps,
                metrics=self.metrics,
                capture=self.subject.capture,
                columns=self.subject.columns(step),
            )
        return rows

    def done(self, step: int, rows: Collection[Row]) -> bool:
        """Return whether the maps against all teachers are complete."""
        capture = self.subject.capture
        records = [
            alignment_record(teacher, self.images, capture, Preparation()) | model_record(self.subject.network)
            for teacher in self.teachers
        ]
        layers = range(1, self.subject.recipe.architecture.depth + 1)
        return is_complete(step, rows, records, self.metrics, layers, self.timesteps)
