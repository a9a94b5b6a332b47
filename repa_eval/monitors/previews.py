"""Pictures of samples along training: previews from fixed noise, and interpolations of a memory bank."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from repa_eval.diffusion.model import DiffusionModel
from repa_eval.evaluation.tiles import GAP, in_rows, reduced, side_by_side
from repa_eval.interfaces.images import load_data
from repa_eval.interfaces.monitor import monitor
from repa_eval.monitors.shared.pictures import PictureMonitor, write_grid
from repa_eval.monitors.shared.run import EvaluatedRun
from repa_eval.results import Row
from repa_eval.runtime.files import write_atomic
from repa_eval.sampling.generate import bank_for
from repa_eval.sampling.interpolation import images_between, pairs_of

PREVIEWED = 10  # images of a preview: one of each of the first ten classes
PREVIEW_STEPS = 25
PAIRS = 8  # rows of a picture of interpolations


@monitor("preview", order=40, needs=("samples",))
class Preview(PictureMonitor):
    """media/samples-<step>.png: samples from the same noise at every step of every run."""

    kind = "samples"

    def __call__(self, step: int, model: DiffusionModel) -> Iterable[Row]:
        """Write the picture; there are no rows."""
        sampler = self.run.sampler(PREVIEW_STEPS, seed=1, balanced=not self.run.network.draws_snippets)
        write_atomic(self.file(step), side_by_side(reduced(self.run.draw(model, PREVIEWED, sampler).images)))
        return ()


@monitor("interpolations", order=50, needs=("samples", "memory bank"), in_training="last")
class Interpolations(PictureMonitor):
    """media/interpolation-<step>.png: samples between two snippets of the memory bank and their training images."""

    kind = "interpolation"

    def __init__(self, run: EvaluatedRun) -> None:
        super().__init__(run)
        self.train = load_data(run.data, run.split)

    def __call__(self, step: int, model: DiffusionModel) -> Iterable[Row]:
        """Write the picture and its titles; there are no rows."""
        bank = bank_for(model, None)
        assert bank is not None
        pairs = pairs_of(PAIRS, len(bank), seed=1)
        between = images_between(model, bank, pairs, self.run.sampler(PREVIEW_STEPS, seed=1)).numpy()
        starts, ends = (self._train_images(rows) for rows in zip(*pairs, strict=True))
        words = {
            "caption": "Each row interpolates linearly from one snippet of the memory bank to another, with the same "
            "noise throughout. The first and last image are the training images of the two snippets; the others are "
            "generated.",
            "rows": [f"{a} to {b}" for a, b in pairs],
            "columns": between.shape[1] + 2,
            "tile": between.shape[-1] + 2 * GAP,
        }
        write_grid(self.file(step), in_rows(np.concatenate([starts, between, ends], axis=1)), words)
        return ()

    def _train_images(self, rows: Iterable[int]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        """Return the training images (N, 1, C, H, W) of rows of the memory bank."""
        return torch.stack([self.train.pixels([row]) for row in rows]).numpy()
