"""Linear and k-NN probes along training."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from repa_eval.diffusion.model import DiffusionModel
from repa_eval.features.model_input import model_input
from repa_eval.interfaces.monitor import Monitor, monitor
from repa_eval.interfaces.teacher import Teacher
from repa_eval.monitors.shared.completeness import is_complete
from repa_eval.monitors.shared.run import EvaluatedRun
from repa_eval.probes import grid
from repa_eval.results import Row


@monitor("probes", order=60, needs=("null label", "probe data"), in_training="never")
class Probes(Monitor):
    """Linear and k-NN probes of every layer at every timestep, and of the teachers."""

    def __init__(self, run: EvaluatedRun, *, timesteps: Sequence[float] | None = None) -> None:
        self.run = run
        self.timesteps = run.timesteps if timesteps is None else timesteps
        self.splits = run.probe_splits
        self.levels: list[Row] | None = None  # of the teachers: those of all checkpoints

    def __call__(self, step: int, model: DiffusionModel) -> Iterable[Row]:
        """Return the rows of the model, and those of the teachers, which have no step."""
        rows = grid.probe(
            model,
            self.splits,
            layers=self.run.layers,
            timesteps=self.timesteps,
            capture=self.run.capture,
            columns=self.run.columns(step),
        )
        if self.levels is None:
            self.levels = [row for teacher in self.run.reference_teachers for row in self._levels_of(teacher)]
        return rows + self.levels

    def done(self, step: int, rows: Collection[Row]) -> bool:
        """Return whether the grid is complete and the table holds every teacher's accuracy."""
        capture = self.run.capture
        reads = model_input(self.splits.test, self.splits.test.model_shape, capture.latents)
        for kind in grid.KINDS:
            record = grid.protocol(self.splits, self.run.interpolant, kind=kind, seed=capture.seed)
            record |= {**self.run.network.record, **reads.record(), **capture.class_token_record}
            if not is_complete(step, rows, [record], [grid.NAMES[kind]], self.run.layers, self.timesteps):
                return False
        teacher_rows = [row for row in rows if row.metric == f"{grid.NAMES[grid.KINDS[-1]]}_teacher"]
        return len(teacher_rows) >= len(self.run.reference_teachers)

    def _levels_of(self, teacher: Teacher) -> list[Row]:
        return grid.teacher_level(teacher, self.splits, capture=self.run.capture, columns={"run": self.run.name})
