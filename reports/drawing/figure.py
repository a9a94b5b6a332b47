"""A figure of the report: its SVG, title and words."""

from __future__ import annotations

from dataclasses import dataclass

STEP = "training step"
SMALL, LARGE = 3.6, 4.4  # inches; the page scales them


@dataclass(frozen=True)
class Figure:
    """One drawing with what to read in it."""

    svg: str
    title: str
    caption: str = ""
    label: str = ""  # what a screen reader says
    key: str = ""


class Ids:
    """Hands out the prefixes that keep the ids of the drawings apart."""

    def __init__(self) -> None:
        self._last = 0

    def next(self) -> str:
        """Return a prefix that was not handed out before."""
        self._last += 1
        return f"f{self._last}-"
