"""What is measured of a training run, by the trainer itself, by `sweep` and by the demo. Here training meets measuring.

A measure is a callable (step, averaged model) -> rows that can tell from a table whether it was taken already.
"""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from repa_eval.align import METRICS, TIMESTEPS, Preparation, align
from repa_eval.align import protocol as alignment_record
from repa_eval.data._registry import Images, load_data
from repa_eval.extractors._registry import Extractor, load_extractor
from repa_eval.features import model_record
from repa_eval.fidelity import evaluate, names_of, record_of
from repa_eval.models.layers import DiffusionModel
from repa_eval.pictures import GAP, in_rows, side_by_side, token_colours
from repa_eval.probes import grid
from repa_eval.results import Row, protocol_hash, write_atomic
from repa_eval.samples import record_path, save_npz
from repa_eval.sampling.between import images_between, pairs_of
from repa_eval.sampling.generate import SamplerSettings, bank_for, generate
from repa_eval.shares import ALONE, Share
from repa_eval.subject import Subject
from repa_eval.teachers._registry import Teacher, load_teacher

STRIP = 10  # images of a preview, always from the same noise and of the first ten classes
PREVIEW_STEPS = 25
MAP_IMAGES = 600
PROBE_TRAIN, PROBE_TEST = 1500, 600
PCA_IMAGES, PCA_FIT, PCA_TIME = 8, 256, 0.1
PAIRS = 8  # rows of a picture of interpolations


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


class Quality(Measure):
    """Sample quality by the recipe's extractor, and by pixels as a second opinion.

    share: the processes among which samples and features are divided; all of them call this, the rows come to the
    first. keep_samples: the samples of that many of the newest steps stay on disk, as RUN/samples/<step>.npz.
    """

    shared = True

    def __init__(self, subject: Subject, *, share: Share = ALONE, keep_samples: int = 0) -> None:
        self.subject, self.share, self.keep_samples = subject, share, keep_samples
        settings = subject.recipe.settings.evaluation
        self.reference = load_data(subject.data, "reference")
        self.judges: list[tuple[Extractor, Sequence[str]]] = [
            (load_extractor(settings.extractor).to(subject.device), ("fd", "inception_score", "precision_recall")),
            (load_extractor("pixel_pca"), ("fd",)),
        ]
        for judge, _ in self.judges:
            judge.prepare(self.reference)

    def rounds(self, step: int) -> list[SamplerSettings]:
        """Return the sampler of every round; a round's number of samples is `count_of` it."""
        settings = self.subject.recipe.settings.evaluation
        steps = [settings.num_steps]
        if self.subject.is_last(step) and settings.final_samples:
            steps.append(settings.final_num_steps)
        return [self.subject.sampler(count) for count in steps]

    def count_of(self, place: int) -> int:
        """Return how many samples a round makes: the regular one is the first."""
        settings = self.subject.recipe.settings.evaluation
        return settings.num_samples if place == 0 else settings.final_samples

    def __call__(self, step: int, model: DiffusionModel) -> Iterable[Row]:
        """Return the rows of every round and judge."""
        rows = []
        for place, sampler in enumerate(self.rounds(step)):
            samples = draw(model, self.count_of(place), sampler, self.share)
            if self.keep_samples and not place and self.share.first:
                self._keep(step, samples, sampler)
            columns = {**self.subject.columns(step), "seed": sampler.seed}
            for judge, metrics in self.judges:
                rows += evaluate(
                    samples,
                    self.reference,
                    judge,
                    metrics=metrics,
                    protocol=self.subject.made(sampler),
                    columns=columns,
                    workers=self.share,
                )
        return rows

    def done(self, step: int, rows: Collection[Row]) -> bool:
        """Return whether every number of every round is there."""
        known = {(row.metric, row.protocol) for row in rows if row.step == step}
        wanted = {
            (name, protocol_hash(record_of(judge, self.reference, self.count_of(place), self.subject.made(sampler))))
            for place, sampler in enumerate(self.rounds(step))
            for judge, metrics in self.judges
            for name in names_of(metrics, judge)
        }
        return wanted <= known

    def _keep(self, step: int, samples: Images, sampler: SamplerSettings) -> None:
        folder = self.subject.run / "samples"
        origin = {"data": self.subject.data, "extractor": self.subject.recipe.settings.evaluation.extractor}
        record = {**self.subject.columns(step), **origin, **self.subject.made(sampler)}
        save_npz(folder / f"{step:07d}.npz", samples.images, samples.labels, record)
        for file in sorted(folder.glob("[0-9]*.npz"))[: -self.keep_samples]:
            record_path(file).unlink(missing_ok=True)
            file.unlink()


class Floor(Measure):
    """Once, after the last step: real training images against the reference, the level that samples can reach."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.train, self.reference = (load_data(subject.data, split) for split in ("train", "reference"))
        self.judge = load_extractor(subject.recipe.settings.evaluation.extractor).to(subject.device)

    def __call__(self, step: int, model: DiffusionModel) -> Iterable[Row]:
        """Return the rows, named `<metric>_floor`, without a step."""
        if not self.subject.is_last(step):
            return []
        rows = []
        for count in self._counts():
            # the reference is the head of the training images: take others
            others = self.train.part(len(self.reference), len(self.reference) + count)
            columns = {"run": self.subject.run.resolve().name}
            record = {"samples": "real training images outside the reference"}
            measured = evaluate(others, self.reference, self.judge, metrics=("fd",), protocol=record, columns=columns)
            rows += [dataclasses.replace(row, metric=f"{row.metric}_floor") for row in measured]
        return rows

    def done(self, step: int, rows: Collection[Row]) -> bool:
        """Return whether the level was measured for every number of samples."""
        known = {row.n for row in rows if row.metric.endswith("_floor")}
        return not self.subject.is_last(step) or known >= set(self._counts())

    def _counts(self) -> list[int]:
        settings = self.subject.recipe.settings.evaluation
        return [count for count in (settings.num_samples, settings.final_samples) if count]


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
        write_atomic(self._file(step).with_suffix(".json"), json.dumps(words, indent=1) + "\n")
        write_atomic(self._file(step), in_rows(np.concatenate([ends[0], made, ends[1]], axis=1)))
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
        write_atomic(self._file(step).with_suffix(".json"), json.dumps(words, indent=1) + "\n")
        write_atomic(self._file(step), png)
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
        measures += [Quality(subject, share=share, keep_samples=keep_samples), Floor(subject), Preview(subject)]
        measures += [Interpolations(subject)] if subject.draws_snippets else []
    measures.append(Probes(subject, names))
    if names:
        measures += [AlignmentMap(subject, names, metrics=(*METRICS, "mutual_knn")), TokenPictures(subject, names[0])]
    return measures


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
