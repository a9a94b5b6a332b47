"""What a user's own code is told while a run trains: in one process, after the run's files have been written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from repa_eval.errors import UserError
from repa_eval.results import Row

EVENTS = ("on_log", "on_rows", "on_checkpoint")
LogFunction = Callable[[int, Mapping[str, float]], object]


class Callback:
    """The three events; a subclass, or any object, has those methods that it wants to be called.

    A run that is resumed repeats the steps after its last checkpoint, and tells of them again.
    """

    def on_log(self, step: int, values: Mapping[str, float]) -> None:
        """After every `log_every` steps: the training curves at `step`, such as loss, grad_norm, learning_rate."""

    def on_rows(self, rows: Sequence[Row]) -> None:
        """After a measurement: the rows that were appended to results.jsonl."""

    def on_checkpoint(self, path: Path) -> None:
        """After a checkpoint was saved at `path`."""


class Callbacks:
    """Several callbacks as one. UserError for an object that has none of the events and is no function."""

    def __init__(self, given: Iterable[Callback | LogFunction | object] = ()) -> None:
        self._events: dict[str, list[Callable[..., object]]] = {event: [] for event in EVENTS}
        for one in given:
            if isinstance(one, type):
                raise UserError(f"callback {one.__name__} is a class: give an object of it, {one.__name__}()")
            methods: dict[str, Any] = {event: getattr(one, event) for event in EVENTS if hasattr(one, event)}
            if not methods and callable(one):
                methods = {"on_log": one}
            if not methods:
                needed = f"a function (step, values), or an object with {', '.join(EVENTS)}"
                raise UserError(f"callback of type {type(one).__name__}: give {needed}")
            for event, method in methods.items():
                self._events[event].append(method)

    def on_log(self, step: int, values: Mapping[str, float]) -> None:
        """Tell of the training curves at a step."""
        self._tell("on_log", step, dict(values))

    def on_rows(self, rows: Sequence[Row]) -> None:
        """Tell of measured rows, if there are any."""
        if rows:
            self._tell("on_rows", list(rows))

    def on_checkpoint(self, path: Path) -> None:
        """Tell of a saved checkpoint."""
        self._tell("on_checkpoint", path)

    def _tell(self, event: str, *what: object) -> None:
        for method in self._events[event]:
            method(*what)
