"""Pictures of samples along training: previews from fixed noise, and interpolations of a memory bank."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import torch

from repa_eval.diffusion.model import DiffusionModel
from repa_eval.evaluation.tiles import GAP, in_rows, side_by_side
from repa_eval.interfaces.images import load_data
from repa_eval.interfaces.monitor import Measure
from repa_eval.monitors.shared.media import write_grid
from repa_eval.monitors.shared.run import Subject
from repa_eval.monitors.shared.samples import draw
from repa_eval.results import Row
from repa_eval.runtime.files import write_atomic
from repa_eval.sampling.generate import bank_for
from repa_eval.sampling.interpolation import images_between, pairs_of

STRIP = 10  # images of a preview, always from the same noise and of the first ten classes
PREVIEW_STEPS = 25
PAIRS = 8  # rows of a picture of interpolations


class Preview(Measure):
    """media/samples-<step>.png: the same noise at every step, in every run."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    def __call__(self, step: int, model: DiffusionModel) -> Iterable[Row]:
        """Write the picture; there are no rows."""
        sampler = self.subject.sampler(PREVIEW_STEPS, seed=1, balanced=not self.subject.draws_snippets)
        write_atomic(self._file(step), side_by_side(draw(model, STRIP, sampler).images))
        return ()

    def done(self, step: int, rows: Collection[Row]) -> bool:
        """Return whether the picture is there."""
        return self._file(step).is_file()

    def _file(self, step: int) -> Path:
        return self.subject.run / "media" / f"samples-{step:07d}.png"


class Interpolations(Measure):
    """media/interpolation-<step>.png: from one snippet of the memory bank to another, between their training images."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.train = load_data(subject.data, subject.recipe.settings.split)

    def __call__(self, step: int, model: DiffusionModel) -> Iterable[Row]:
        """Write the picture and the words beside it; there are no rows."""
        bank = bank_for(model, None)
        assert bank is not None
        pairs = pairs_of(PAIRS, len(bank), seed=1)
        made = images_between(model, bank, pairs, self.subject.sampler(PREVIEW_STEPS, seed=1)).numpy()
        ends = [torch.stack([self.train.fetch([row])[0] for row in rows]).numpy() for rows in zip(*pairs, strict=True)]
        words = {
            "caption": "Each row leads from one snippet of the memory bank to another by linear interpolation, always "
            "with the same noise. Its first and its last image are the training images that the two snippets are of; "
            "those between are generated.",
            "rows": [f"{a} to {b}" for a, b in pairs],
            "columns": made.shape[1] + 2,
            "tile": made.shape[-1] + 2 * GAP,
        }
        write_grid(self._file(step), in_rows(np.concatenate([ends[0], made, ends[1]], axis=1)), words)
        return ()

    def done(self, step: int, rows: Collection[Row]) -> bool:
        """Return whether the picture is there."""
        return self._file(step).is_file()

    def _file(self, step: int) -> Path:
        return self.subject.run / "media" / f"interpolation-{step:07d}.png"
