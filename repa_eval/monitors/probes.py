"""Linear and k-NN probes along training."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from repa_eval.diffusion.model import DiffusionModel
from repa_eval.diffusion.timesteps import TIMESTEPS
from repa_eval.features.model_input import model_input
from repa_eval.interfaces.monitor import Monitor, monitor
from repa_eval.monitors.shared.completeness import all_layers, is_complete
from repa_eval.monitors.shared.run import EvaluatedRun
from repa_eval.probes import grid
from repa_eval.probes.splits import probe_splits
from repa_eval.results import Row


@monitor("probes", order=60, needs=("null label",), in_training="never")
class Probes(Monitor):
    """Linear and k-NN probes of every layer at every timestep, and of the teachers."""

    def __init__(self, run: EvaluatedRun, *, timesteps: Sequence[float] = TIMESTEPS) -> None:
        self.run, self.timesteps = run, timesteps
        self.splits = probe_splits(run.data)

    def __call__(self, step: int, model: DiffusionModel) -> Iterable[Row]:
        """Return the rows of the model, and those of the teachers, which have no step."""
        rows = grid.probe(
            model,
            self.splits,
            layers=all_layers(model),
            timesteps=self.timesteps,
            capture=self.run.capture,
            columns=self.run.columns(step),
        )
        for teacher in self.run.reference_teachers:
            rows += grid.teacher_level(teacher, self.splits, columns={"run": self.run.name})
        return rows

    def done(self, step: int, rows: Collection[Row]) -> bool:
        """Return whether the grid is complete and the table holds every teacher's accuracy."""
        layers = range(1, self.run.network.depth + 1)
        reads = model_input(self.splits.test, self.splits.test.model_shape)
        for kind in grid.KINDS:
            record = grid.protocol(self.splits, self.run.interpolant, kind=kind, seed=0)
            record |= {**self.run.network.record, **reads.record(), **self.run.capture.class_token_record}
            if not is_complete(step, rows, [record], [grid.NAMES[kind]], layers, self.timesteps):
                return False
        teacher_rows = [row for row in rows if row.metric == f"{grid.NAMES[grid.KINDS[-1]]}_teacher"]
        return len(teacher_rows) >= len(self.run.teacher_names)
