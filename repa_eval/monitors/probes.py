"""Linear and k-NN probes along training."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from repa_eval.diffusion.model import DiffusionModel
from repa_eval.diffusion.timesteps import TIMESTEPS
from repa_eval.features.hidden_states import model_record
from repa_eval.interfaces.monitor import Measure
from repa_eval.interfaces.teacher import load_teacher
from repa_eval.monitors.shared.completeness import all_layers, is_complete
from repa_eval.monitors.shared.run import Subject
from repa_eval.probes import grid
from repa_eval.probes.splits import probe_splits
from repa_eval.results import Row


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
            layers=all_layers(model),
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
            if not is_complete(step, rows, [record], [grid.NAMES[kind]], layers, self.timesteps):
                return False
        levels = [row for row in rows if row.metric == f"{grid.NAMES[grid.KINDS[-1]]}_teacher"]
        return len(levels) >= len(self.teachers)
