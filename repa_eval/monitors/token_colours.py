"""Pictures of hidden states: their principal components as colours."""

from __future__ import annotations

from collections.abc import Iterable

from repa_eval.diffusion.model import DiffusionModel
from repa_eval.evaluation.tiles import LARGEST
from repa_eval.evaluation.token_colours import token_colours
from repa_eval.interfaces.monitor import monitor
from repa_eval.monitors.shared.pictures import PictureMonitor, write_grid
from repa_eval.monitors.shared.run import EvaluatedRun
from repa_eval.results import Row

PCA_IMAGES, PCA_FIT, PCA_TIME = 8, 256, 0.1
PCA_FIT_LARGE = 32  # images of more than LARGEST pixels: their tokens are many, and all layers are held at once


@monitor("token_colours", order=80, needs=("teachers",), in_training="never")
class TokenColours(PictureMonitor):
    """media/pca-<step>.png: the first three principal components of hidden states and of a teacher, as colours.

    teacher: the position of the teacher in `run.reference_teachers`.
    """

    kind = "pca"

    def __init__(self, run: EvaluatedRun, *, teacher: int = 0) -> None:
        super().__init__(run)
        self.images = run.images(PCA_FIT)
        self.images = self.images.part(0, PCA_FIT if max(self.images.shape) <= LARGEST else PCA_FIT_LARGE)
        self.teacher = run.reference_teachers[teacher]

    def __call__(self, step: int, model: DiffusionModel) -> Iterable[Row]:
        """Write the picture and its titles; there are no rows."""
        png, words = token_colours(
            model,
            self.teacher,
            self.images,
            count=PCA_IMAGES,
            t=PCA_TIME,
            interpolant=self.run.interpolant,
            class_tokens=self.run.class_tokens,
            latents=self.run.capture.latents,
        )
        write_grid(self.file(step), png, words)
        return ()
