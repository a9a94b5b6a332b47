"""How well captions are followed: rank@1 over timesteps, quality over guidance scales, and samples under captions."""

from __future__ import annotations

from typing import Any

from repa_eval.interfaces.section import section
from repa_eval.reports.drawing import figures
from repa_eval.reports.drawing.figure import SMALL, Figure
from repa_eval.reports.drawing.grids import captions_of
from repa_eval.reports.numbers.caption_charts import Chart, charts
from repa_eval.reports.numbers.protocols import Records, conditions, field
from repa_eval.reports.numbers.words import listing, number
from repa_eval.reports.page import Page

PICTURES = "captions"


@section(order=70, anchor="captions", title="Captions", grids=(PICTURES,))
def build(page: Page) -> dict[str, Any] | None:
    """Return the charts and the pictures of samples under their captions."""
    found = [draw(chart, page.records) for chart in charts(page.rows, page.arms, page.records)]
    grids = page.pictures.of_kind(PICTURES)
    return {"figures": found, "grids": grids, "captions": captions_of(grids)} if found or grids else None


def draw(chart: Chart, records: Records) -> Figure:
    """Return a chart with the conditions of its numbers as caption."""
    with figures.canvas(SMALL, 0.64 * SMALL) as (figure, ax):
        figures.lines(chart.panel, ax, xlabel=chart.xlabel)
        svg = figures.svg(figure)
    protocol = chart.panel.group.protocol
    judge = field(records, protocol, "judge")
    accuracy = field(records, protocol, "judge_accuracy")
    among = field(records, protocol, "num_candidates")
    parts = [conditions(chart.panel.group, records)]
    parts += [f"Classifier: {judge}, right on {accuracy} of held-out digits."] if judge else []
    parts += [f"Chance is 1/{among} = {number(1 / int(among))}."] if among else []
    parts += ["Dashed: the frozen model."] if any(curve.arm.dashed for curve in chart.panel.curves) else []
    return Figure(svg, chart.title, " ".join(filter(None, parts)), alt_text(chart))


def alt_text(chart: Chart) -> str:
    """Return what a screen reader says of a chart."""
    lines = [
        f"{curve.arm.name} from {number(points[0][1])} to {number(points[-1][1])}"
        for curve in chart.panel.curves
        if (points := curve.mean or curve.seeds[0])
    ]
    return f"{chart.title} over {chart.xlabel}: {listing(lines)}"
