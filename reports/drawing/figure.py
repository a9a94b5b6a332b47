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
