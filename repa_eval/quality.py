"""Sample quality of a training run: along its steps, the level of real images, and copies of training images."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from repa_eval.data._registry import Images, load_data
from repa_eval.extractors._registry import Extractor, load_extractor
from repa_eval.fidelity import evaluate, names_of, nearest_picture, record_of
from repa_eval.measure import Measure, draw, write_grid
from repa_eval.models.layers import DiffusionModel
from repa_eval.results import Row, protocol_hash
from repa_eval.samples import record_path, save_npz
from repa_eval.sampling.generate import SamplerSettings
from repa_eval.shares import ALONE, Share
from repa_eval.subject import Subject

COPYING = ("memorisation", "authpct")
COPIED = 50_000  # training images among which copies are looked for


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


class Copies(Measure):
    """Once, after the last step: are samples copies of training images? C_T, AuthPct, and the nearest neighbours.

    Of the samples of the regular round; media/neighbours-<step>.png shows those most like a training image.
    """

    shared = True

    def __init__(self, quality: Quality) -> None:
        self.quality, self.subject = quality, quality.subject
        train = load_data(self.subject.data, "train")
        self.train, self.unseen = train.head(min(COPIED, len(train))), load_data(self.subject.data, "test")
        self.judge = quality.judges[0][0]

    def __call__(self, step: int, model: DiffusionModel) -> Iterable[Row]:
        """Return the rows and write the picture."""
        if not self.subject.is_last(step):
            return []
        sampler, count, share = *self._round(step), self.quality.share
        samples = draw(model, count, sampler, share)
        rows = evaluate(
            samples,
            self.train,
            self.judge,
            metrics=COPYING,
            protocol=self._record(sampler),
            columns={**self.subject.columns(step), "seed": sampler.seed},
            held_out=self.unseen,
            workers=share,
        )
        found = nearest_picture(samples, self.train, self.judge, workers=share)
        if found is not None:
            write_grid(self._file(step), *found)
        return rows

    def done(self, step: int, rows: Collection[Row]) -> bool:
        """Return whether both numbers and the picture are there."""
        if not self.subject.is_last(step):
            return True
        sampler, count = self._round(step)
        wanted = protocol_hash(record_of(self.judge, self.train, count, self._record(sampler)))
        known = {row.metric for row in rows if row.step == step and row.protocol == wanted}
        return self._file(step).is_file() and known >= set(names_of(COPYING, self.judge))

    def _round(self, step: int) -> tuple[SamplerSettings, int]:
        return self.quality.rounds(step)[0], self.quality.count_of(0)

    def _record(self, sampler: SamplerSettings) -> dict[str, Any]:
        return {**self.subject.made(sampler), "held_out": self.unseen.name, "held_out_hash": self.unseen.digest()}

    def _file(self, step: int) -> Path:
        return self.subject.run / "media" / f"neighbours-{step:07d}.png"


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
