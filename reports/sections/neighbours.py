"""The samples closest to a training image, and the nearest training images of each."""

from __future__ import annotations

from typing import Any

from repa_eval.interfaces.section import section
from repa_eval.reports.drawing.grids import captions_of
from repa_eval.reports.page import Page


@section(
    order=84,
    anchor="neighbours",
    title="Samples and their nearest training images",
    name="Neighbours",
    grids=("neighbours",),
)
def build(page: Page) -> dict[str, Any] | None:
    """Return the pictures of every run along training."""
    grids = page.pictures.of_kind("neighbours")
    return {"grids": grids, "captions": captions_of(grids)} if grids else None
