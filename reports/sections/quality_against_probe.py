"""Sample quality against the accuracy of a probe: the two numbers of every checkpoint that has both."""

from __future__ import annotations

from typing import Any

from repa_eval.interfaces.section import section
from repa_eval.reports.drawing import figures
from repa_eval.reports.drawing.figure import SMALL, Figure
from repa_eval.reports.numbers.probed import Probed, probed
from repa_eval.reports.numbers.protocols import Records, conditions
from repa_eval.reports.numbers.words import listing, number
from repa_eval.reports.page import Page


@section(order=60, anchor="against", title="Sample quality against a probe", name="Quality against probe")
def build(page: Page) -> dict[str, Any] | None:
    """Return the headline distance against the probe's accuracy, a point per step that has both; None without any."""
    found = probed(page.maps, page.rows, page.headline, page.arms)
    return None if found is None else {"figure": draw(found, page.records)}


def draw(found: Probed, records: Records) -> Figure:
    """Return a line for each arm, its points being checkpoints."""
    metric, quality = found.probe, found.panel.group.metric
    with figures.canvas(SMALL, 0.72 * SMALL) as (figure, ax):
        xlabel = f"{metric}, block {found.layer}, t = {found.timestep:g}"
        figures.traces(found.traces, ax, xlabel=xlabel, ylabel=found.panel.label)
        svg = figures.svg(figure)
    steps = listing(str(step) for step in dict.fromkeys(step for trace in found.traces for step in trace.steps))
    caption = (
        f"A point is one checkpoint (steps {steps}), lines follow training. {conditions(found.panel.group, records)} "
        "Both improve with training, so correlation along one curve is not evidence of causation: compare the curves, "
        "not the points of one curve."
    )
    alt_text = "; ".join(
        f"{trace.arm.name} from ({number(trace.mean[0][0])}, {number(trace.mean[0][1])}) "
        f"to ({number(trace.mean[-1][0])}, {number(trace.mean[-1][1])})"
        for trace in found.traces
    )
    return Figure(svg, f"{quality} against {metric}", caption, f"{metric} and {quality}: {alt_text}")
