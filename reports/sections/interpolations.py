"""Images generated between two snippets of the memory bank."""

from __future__ import annotations

from typing import Any

from repa_eval.interfaces.section import section
from repa_eval.reports.drawing.grids import captions_of
from repa_eval.reports.page import Page


@section(
    order=82,
    anchor="interpolations",
    title="Interpolations between snippets of the memory bank",
    name="Interpolations",
    grids=("interpolation",),
)
def build(page: Page) -> dict[str, Any] | None:
    """Return the pictures of every run along training."""
    grids = page.pictures.of_kind("interpolation")
    return {"grids": grids, "captions": captions_of(grids)} if grids else None
