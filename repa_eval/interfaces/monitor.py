"""The contract of a monitor, which evaluates a model along its training, and the registry of monitors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

from repa_eval.diffusion.model import DiffusionModel
from repa_eval.errors import UserError
from repa_eval.registry import Registry
from repa_eval.results import Row

B = TypeVar("B", bound=Callable[..., "Monitor"])
# images can be generated; a teacher is known; snippets are the condition; a label means "no class"; the data has labels
# to probe for; it is known when training ends, and on which images
NEEDS = ("samples", "teachers", "memory bank", "null label", "probe data", "end of training")
InTraining = Literal["every", "last", "never"]


class Monitor(ABC):
    """Evaluates a model at a step of its training: `monitor(step, model)` returns rows.

    shared: whether several processes divide the work. All of them call such a monitor, and the first one gets the rows;
    any other monitor is called by the first process alone.
    """

    shared: bool = False

    @abstractmethod
    def __call__(self, step: int, model: DiffusionModel) -> Iterable[Row]:
        """Return the rows of a step, and write files into the run folder where the monitor makes any.

        model: in eval mode, in the project's convention (t = 1 is noise, the output is noise - data).
        """

    @abstractmethod
    def done(self, step: int, rows: Collection[Row]) -> bool:
        """Return whether the rows of the run's table and the files of the run are complete for a step."""


class AtSteps(Monitor):
    """A monitor that evaluates at certain steps only."""

    def __init__(self, monitor: Monitor, steps: Collection[int]) -> None:
        self.monitor, self.steps, self.shared = monitor, steps, monitor.shared

    def __call__(self, step: int, model: DiffusionModel) -> Iterable[Row]:
        """Return the rows of the monitor, none at other steps."""
        return self.monitor(step, model) if step in self.steps else ()

    def done(self, step: int, rows: Collection[Row]) -> bool:
        """Return whether the monitor is done at this step; at other steps there is nothing to do."""
        return step not in self.steps or self.monitor.done(step, rows)


def piece_of(step: int, monitor: Callable[..., Iterable[Row]]) -> str:
    """Return the name of a monitor's work at a step: no two processes should do it at once."""
    inner = monitor.monitor if isinstance(monitor, AtSteps) else monitor
    return f"{step} {type(inner).__name__}"


@dataclass(frozen=True, kw_only=True)
class RegisteredMonitor:
    """build: (EvaluatedRun) -> Monitor. The other fields are the arguments of the decorator `monitor`."""

    build: Callable[..., Monitor]
    order: int
    needs: frozenset[str]
    in_training: InTraining


MONITORS: Registry[RegisteredMonitor] = Registry("monitor", "repa_eval.monitors")


def monitor(
    name: str, *, order: int = 100, needs: Collection[str] = (), in_training: InTraining = "every"
) -> Callable[[B], B]:
    """Register a Monitor class, or a function, that is called with an EvaluatedRun; it is returned unchanged.

    order: monitors run in ascending order; those of the project have 10 to 80.
    needs: entries of NEEDS; the monitor is left out for runs that lack one of them.
    in_training: when the trainer calls it: at every evaluation, after the last step, or never. `repa-eval sweep` calls
    every monitor for every checkpoint.
    Raises UserError for an unknown need and for a class that lacks a method of the contract.
    """
    if unknown := sorted(set(needs) - set(NEEDS)):
        raise UserError(f"monitor {name!r} needs {unknown[0]!r}; the known needs are {', '.join(NEEDS)}")

    def record(build: B) -> B:
        if missing := sorted(getattr(build, "__abstractmethods__", ())):
            raise UserError(f"monitor {name!r}: the class {build.__name__} must define {' and '.join(missing)}")
        entry = RegisteredMonitor(build=build, order=order, needs=frozenset(needs), in_training=in_training)
        MONITORS.register(name, source=build)(entry)
        return build

    return record
