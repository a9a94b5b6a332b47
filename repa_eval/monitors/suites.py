"""What is measured of a training run, by the trainer itself, by `sweep` and by the demo. Here training meets measuring.

A measure is a callable (step, averaged model) -> rows that can tell from a table whether it was taken already.
"""

from __future__ import annotations

from collections.abc import Sequence

from repa_eval.evaluation.alignment import METRICS
from repa_eval.interfaces.monitor import Measure, Only
from repa_eval.monitors.alignment import AlignmentMap
from repa_eval.monitors.copies import Copies
from repa_eval.monitors.previews import Interpolations, Preview
from repa_eval.monitors.probes import Probes
from repa_eval.monitors.real_level import Floor
from repa_eval.monitors.sample_quality import Quality
from repa_eval.monitors.shared.run import Subject
from repa_eval.monitors.token_colours import TokenPictures
from repa_eval.runtime.distributed import ALONE, Share


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
