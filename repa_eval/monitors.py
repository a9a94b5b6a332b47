"""What is measured of a training run, by the trainer itself, by `sweep` and by the demo. Here training meets measuring.

A measure is a callable (step, averaged model) -> rows that can tell from a table whether it was taken already.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from repa_eval.align import METRICS, TIMESTEPS, Preparation, align
from repa_eval.align import protocol as alignment_record
from repa_eval.data._registry import load_data
from repa_eval.features import model_record
from repa_eval.measure import Measure, Only, draw, unseen_images, unseen_split, write_grid
from repa_eval.models.layers import DiffusionModel
from repa_eval.pictures import GAP, in_rows, side_by_side, token_colours
from repa_eval.probes import grid
from repa_eval.quality import Copies, Floor, Quality
from repa_eval.results import Row, protocol_hash, write_atomic
from repa_eval.sampling.between import images_between, pairs_of
from repa_eval.sampling.generate import bank_for
from repa_eval.shares import ALONE, Share
from repa_eval.subject import Subject
from repa_eval.teachers._registry import Teacher, load_teacher

STRIP = 10  # images of a preview, always from the same noise and of the first ten classes
PREVIEW_STEPS = 25
MAP_IMAGES = 600
PROBE_TRAIN, PROBE_TEST = 1500, 600
PCA_IMAGES, PCA_FIT, PCA_TIME = 8, 256, 0.1
PAIRS = 8  # rows of a picture of interpolations


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
                layers=_all_layers(model),
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
        return _complete(step, rows, records, self.metrics, layers, self.timesteps)


class Probes(Measure):
    """Linear and k-NN probes over layers and timesteps, and the teachers' own level."""

    def __init__(self, subject: Subject, teachers: Sequence[str], *, timesteps: Sequence[float] = TIMESTEPS) -> None:
        self.subject, self.timesteps = subject, timesteps
        self.splits = probe_splits(subject.data)
        self.teachers = [load_teacher(name).to(subject.device) for name in teachers]

    def __call__(self, step: int, model: DiffusionModel) -> Iterable[Row]:
        """Return the rows of the model, and those of the teachers, which have no step."""
        rows = grid.probe(
            model,
            self.splits,
            layers=_all_layers(model),
            timesteps=self.timesteps,
            capture=self.subject.capture,
            columns=self.subject.columns(step),
        )
        for teacher in self.teachers:
            rows += grid.teacher_level(teacher, self.splits, columns={"run": self.subject.run.resolve().name})
        return rows

    def done(self, step: int, rows: Collection[Row]) -> bool:
        """Return whether the grid is complete and every teacher's level is known."""
        layers = range(1, self.subject.recipe.architecture.depth + 1)
        for kind in grid.KINDS:
            record = grid.protocol(self.splits, self.subject.interpolant, kind=kind, seed=0)
            record |= model_record(self.subject.network)
            if not _complete(step, rows, [record], [grid.NAMES[kind]], layers, self.timesteps):
                return False
        levels = [row for row in rows if row.metric == f"{grid.NAMES[grid.KINDS[-1]]}_teacher"]
        return len(levels) >= len(self.teachers)


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


def of_recipe(subject: Subject) -> list[Measure]:
    """Return what the trainer measures of itself, as the recipe asks for."""
    recipe = subject.recipe
    if not recipe.settings.evaluation.eval_every or not subject.generates:
        return []
    measures: list[Measure] = [Quality(subject), Preview(subject)]
    if subject.draws_snippets:
        measures.append(Only(Interpolations(subject), {recipe.settings.max_steps}))
    return measures


def everything(
    subject: Subject, teachers: Sequence[str] = (), *, share: Share = ALONE, keep_samples: int = 0
) -> list[Measure]:
    """Return every measure of a run; teachers: beside those that the run was trained with.

    share, keep_samples: see `Quality`.
    """
    names = list(dict.fromkeys([*teachers, *subject.recipe.method.teachers()]))
    measures: list[Measure] = []
    if subject.generates:
        quality = Quality(subject, share=share, keep_samples=keep_samples)
        measures += [quality, Floor(subject), Copies(quality), Preview(subject)]
        measures += [Interpolations(subject)] if subject.draws_snippets else []
    measures.append(Probes(subject, names))
    if names:
        measures += [AlignmentMap(subject, names, metrics=(*METRICS, "mutual_knn")), TokenPictures(subject, names[0])]
    return measures


def probe_splits(data: str) -> grid.Splits:
    """Return the parts of a probe, as many images as there are up to the usual numbers."""
    train, test = load_data(data, "train"), load_data(data, unseen_split(data))
    return grid.Splits(
        train.head(min(PROBE_TRAIN, len(train))), load_data(data, "val"), test.head(min(PROBE_TEST, len(test)))
    )


def _all_layers(model: DiffusionModel) -> range:
    return range(1, model.depth + 1)


def _complete(
    step: int,
    rows: Collection[Row],
    records: Iterable[dict[str, Any]],
    metrics: Sequence[str],
    layers: Sequence[int],
    timesteps: Sequence[float],
) -> bool:
    """Return whether rows hold every metric, layer and timestep under every protocol at a step."""
    known = {(row.metric, row.layer, row.timestep, row.protocol) for row in rows if row.step == step}
    hashes = [protocol_hash(record) for record in records]
    wanted = {(m, layer, t, p) for m in metrics for layer in layers for t in timesteps for p in hashes}
    return wanted <= known
