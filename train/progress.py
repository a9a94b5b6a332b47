"""What a user sees of a training: a bar on a terminal, else one plain line per point of the curves."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import click
from tqdm import tqdm

from repa_eval.train.recipe import Recipe


class Progress:
    """Images per second and time left, measured between two points of the curves, evaluations left out of the former.

    shown: whether anything is printed. Without a terminal on stderr a line is printed at each point of the curves.
    """

    def __init__(self, recipe: Recipe, step: int, *, shown: bool) -> None:
        self.last, self.batch, self.shown = recipe.settings.max_steps, recipe.settings.batch_size, shown
        self._bar: tqdm[Any] = tqdm(
            total=self.last,
            initial=step,
            desc=recipe.name,
            disable=None if shown else True,
            leave=False,
            mininterval=0.5,
        )  # disable=None: shown only where stderr is a terminal
        self._began = self._paused = time.perf_counter()
        self._from = step

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._bar.close()

    def pause(self) -> None:
        """Stop the clock, for what is no training."""
        self._paused = time.perf_counter()

    def go_on(self) -> None:
        """Let the clock run on."""
        self._began += time.perf_counter() - self._paused

    def advance(self) -> None:
        """Count a step."""
        self._bar.update()

    def point(self, step: int, values: Mapping[str, float]) -> None:
        """Show a point of the curves."""
        now = time.perf_counter()
        seconds, steps = max(now - self._began, 1e-9), max(step - self._from, 1)
        self._began, self._from = now, step
        losses = {name: f"{value:.3f}" for name, value in values.items() if name.endswith("loss")}
        speed = f"{steps * self.batch / seconds:.3g} images/s"
        if not self._bar.disable:
            self._bar.set_postfix_str(", ".join([speed, *(f"{name}={value}" for name, value in losses.items())]))
        elif self.shown:
            left = timedelta(seconds=round((self.last - step) * seconds / steps))
            shown = "  ".join(f"{name} {value}" for name, value in losses.items())
            click.echo(f"step {step}/{self.last}  {shown}  {speed}  {left} left", err=True)
