"""What a measure of a training run is, and what measures share: samples drawn, images that training never saw."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from repa_eval.data._registry import Images, load_data
from repa_eval.models.layers import DiffusionModel
from repa_eval.results import Row, write_atomic
from repa_eval.sampling.generate import SamplerSettings, generate
from repa_eval.shares import ALONE, Share


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


def draw(model: DiffusionModel, count: int, sampler: SamplerSettings, share: Share = ALONE) -> Images:
    """Return `count` samples of a model, held in memory; each process makes its share, and all of them get all."""
    size = min(count, 256)
    parts = share.gather(list(generate(model, share.of(range(count), size), sampler, batch_size=size)))
    parts.sort(key=lambda part: part[0][0])
    images = torch.cat([images for _, images, _ in parts]).numpy()
    labels = torch.cat([labels for _, _, labels in parts]).numpy()
    # a model without classes is conditioned on snippets: its "labels" are their rows
    return Images("samples", "all", images, labels, getattr(model.config, "num_classes", 0))


def unseen_images(data: str, count: int) -> Images:
    """Return images that training never saw."""
    return load_data(data, unseen_split(data)).head(count)


def unseen_split(data: str) -> str:
    """Return the split of images that training never saw: the embedded one has a large version."""
    return "test-large" if data == "digits" else "test"


def write_grid(path: Path, png: bytes, words: dict[str, Any]) -> None:
    """Write a picture that is a table, after the words beside it: what is `done` is complete."""
    write_atomic(path.with_suffix(".json"), json.dumps(words, indent=1) + "\n")
    write_atomic(path, png)
