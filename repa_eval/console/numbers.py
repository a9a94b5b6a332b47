"""Types of numeric options: every number of the command line is finite and within a range that means something."""

from __future__ import annotations

import math
from typing import Any

import click

MOST = 10**9  # images, steps, classes: no count is larger


class Whole(click.IntRange):
    """A whole number from `least` to `most`."""

    def __init__(self, least: int = 0, most: int = MOST) -> None:
        super().__init__(min=least, max=most)

    def _describe_range(self) -> str:
        return f"x>={self.min}" if self.max == MOST else super()._describe_range()


class Real(click.FloatRange):
    """A finite number from `least` to `most`; above: above `least`."""

    def __init__(self, least: float | None = None, most: float | None = None, *, above: bool = False) -> None:
        super().__init__(min=least, max=most, min_open=above)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number; UsageError for NaN, for an infinite one and for one outside the range."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


COUNT = Whole(1)
SEED = Whole(0, 2**63 - 1)
