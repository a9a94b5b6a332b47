"""Pictures of hidden states: their principal components as colours."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from repa_eval.diffusion.model import DiffusionModel
from repa_eval.evaluation.token_colours import token_colours
from repa_eval.interfaces.images import unseen_images
from repa_eval.interfaces.monitor import Measure
from repa_eval.interfaces.teacher import load_teacher
from repa_eval.monitors.shared.media import write_grid
from repa_eval.monitors.shared.run import Subject
from repa_eval.results import Row

PCA_IMAGES, PCA_FIT, PCA_TIME = 8, 256, 0.1


class TokenPictures(Measure):
    """media/pca-<step>.png: the first three principal components of hidden states and of the teacher, as colours."""

    def __init__(self, subject: Subject, teacher: str) -> None:
        self.subject = subject
        self.images = unseen_images(subject.data, PCA_FIT)
        self.teacher = load_teacher(teacher).to(subject.device)

    def __call__(self, step: int, model: DiffusionModel) -> Iterable[Row]:
        """Write the picture and the words beside it; there are no rows."""
        png, words = token_colours(
            model,
            self.teacher,
            self.images,
            count=PCA_IMAGES,
            t=PCA_TIME,
            interpolant=self.subject.interpolant,
            class_tokens=self.subject.class_tokens,
        )
        write_grid(self._file(step), png, words)
        return ()

    def done(self, step: int, rows: Collection[Row]) -> bool:
        """Return whether the picture is there."""
        return self._file(step).is_file()

    def _file(self, step: int) -> Path:
        return self.subject.run / "media" / f"pca-{step:07d}.png"
