"""The training curves: losses, norms of the gradient, learning rate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from repa_eval.interfaces.section import section
from repa_eval.reports.drawing import figures
from repa_eval.reports.drawing.figure import SMALL, STEP, Figure
from repa_eval.reports.drawing.panels import alt_text
from repa_eval.reports.numbers.frames import SECONDS, Panel, training_panels
from repa_eval.reports.numbers.words import Metrics
from repa_eval.reports.page import Page


@section(order=100, anchor="training", title="Training curves", name="Training")
def build(page: Page) -> dict[str, Any] | None:
    """Return a figure for every curve of log.jsonl, training seconds aside."""
    panels = training_panels([row for row in page.curves if row.metric != SECONDS], page.arms)
    return {"figures": [draw(panel, page.metrics) for panel in panels]} if panels else None


def draw(panel: Panel, metrics: Metrics) -> Figure:
    """Return one training curve."""
    metric = panel.group.metric
    meaning = metrics.meaning(metric)
    panel = replace(panel, label=metrics.axis(metric))
    with figures.canvas(SMALL, 0.64 * SMALL) as (figure, ax):
        figures.lines(panel, ax, xlabel=STEP, dots=False, log=metric == "grad_norm")
        svg = figures.svg(figure)
    return Figure(svg, metric, f"{meaning.capitalize()}." if meaning else "", alt_text(panel, STEP))
