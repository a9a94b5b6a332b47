"""What a measure of a training run is, and what measures share: samples drawn, images that training never saw."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from repa_eval.diffusion.model import DiffusionModel
from repa_eval.results import Row


class Measure(ABC):
    """Something that is measured of a model at a step. shared: several processes divide it among them."""

    shared = False

    @abstractmethod
    def __call__(self, step: int, model: DiffusionModel) -> Iterable[Row]:
        """Return the rows; files are written beside the run."""

    @abstractmethod
    def done(self, step: int, rows: Collection[Row]) -> bool:
        """Return whether `rows` (those of the run) or the files of the run hold this measure at `step` already."""


@dataclass(frozen=True)
class Only(Measure):
    """A measure that is taken at some steps only."""

    measure: Measure
    at: Collection[int]

    def __call__(self, step: int, model: DiffusionModel) -> Iterable[Row]:
        """Return the rows, none at other steps."""
        return self.measure(step, model) if step in self.at else ()

    def done(self, step: int, rows: Collection[Row]) -> bool:
        """Return whether there is nothing to do."""
        return step not in self.at or self.measure.done(step, rows)
