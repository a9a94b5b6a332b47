"""Whether samples of the last step copy training images."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from repa_eval.diffusion.model import DiffusionModel
from repa_eval.evaluation.nearest_images import nearest_picture
from repa_eval.evaluation.sample_quality import evaluate, names_of, record_of
from repa_eval.interfaces.images import load_data
from repa_eval.interfaces.monitor import Measure
from repa_eval.monitors.sample_quality import Quality
from repa_eval.monitors.shared.media import write_grid
from repa_eval.monitors.shared.samples import draw
from repa_eval.results import Row, protocol_hash
from repa_eval.sampling.generate import SamplerSettings

COPYING = ("memorisation", "authpct")
COPIED = 50_000  # training images among which copies are looked for


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
