"""The tokens of every block in the colours of their principal components."""

from __future__ import annotations

from typing import Any

from repa_eval.interfaces.section import section
from repa_eval.reports.drawing.grids import captions_of
from repa_eval.reports.page import Page


@section(order=80, anchor="features", title="Principal components of the tokens", name="Components", grids=("pca",))
def build(page: Page) -> dict[str, Any] | None:
    """Return the pictures of every run along training."""
    grids = page.pictures.of_kind("pca")
    return {"grids": grids, "captions": captions_of(grids)} if grids else None
