"""Sample quality of a training run: along its steps, the level of real images, and copies of training images."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from repa_eval.diffusion.model import DiffusionModel
from repa_eval.evaluation.sample_quality import evaluate, names_of, record_of
from repa_eval.interfaces.extractor import Extractor, load_extractor
from repa_eval.interfaces.images import Images, load_data
from repa_eval.interfaces.monitor import Measure
from repa_eval.monitors.shared.run import Subject
from repa_eval.monitors.shared.samples import draw
from repa_eval.results import Row, protocol_hash
from repa_eval.runtime.distributed import ALONE, Share
from repa_eval.sampling.generate import SamplerSettings
from repa_eval.sampling.sample_files import record_path, save_npz


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
