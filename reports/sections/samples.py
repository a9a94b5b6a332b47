"""Samples along training, and every other kind of picture that a run left behind: one strip per step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from repa_eval.interfaces.section import section
from repa_eval.reports.drawing.strips import Strip
from repa_eval.reports.page import Page


@section(order=90, anchor="samples", title="Samples along training", name="Samples", pictures=True)
def build(page: Page) -> dict[str, Any] | None:
    """Return the strips by kind, samples first."""
    return {"kinds": by_kind(page.pictures.strips)} if page.pictures.strips else None


def by_kind(pictures: Sequence[Strip]) -> dict[str, list[Strip]]:
    """Return the strips of each kind, samples first, else in order of appearance."""
    kinds: dict[str, list[Strip]] = {}
    for strip in sorted(pictures, key=lambda strip: strip.kind != "samples"):
        kinds.setdefault(strip.kind, []).append(strip)
    return kinds
