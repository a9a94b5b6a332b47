"""Drawings: equal text for equal frames, colours of the page, cells for the script."""

from __future__ import annotations

import re

import matplotlib
import pytest

import report_example as sample
from repa_eval.reports import figures
from repa_eval.reports.arms import arms_of
from repa_eval.reports.frames import maps_of, quality_panels


@pytest.fixture(scope="module")
def frames():
    inputs = sample.example(("vanilla", "repa-random"))
    arms = arms_of(inputs["rows"], inputs["runs"])
    return quality_panels(inputs["rows"], arms), maps_of(inputs["rows"], arms)


def draw(panel, prefix="f1-") -> str:
    with figures.canvas() as (figure, ax):
        assert figures.lines(panel, ax, xlabel="training step", log=True) is ax
        return figures.svg(figure, prefix=prefix)


def test_svg_is_deterministic_and_has_no_metadata(frames):
    first, second = draw(frames[0][0]), draw(frames[0][0])
    assert first == second
    assert "<metadata" not in first
    assert "<!--" not in first
    assert "Matplotlib" not in first


def test_the_users_matplotlibrc_does_not_matter(frames):
    plain = draw(frames[0][0])
    with matplotlib.rc_context(
        {"lines.linewidth": 9, "axes.facecolor": "red", "xtick.direction": "in", "font.size": 20}
    ):
        assert draw(frames[0][0]) == plain
        assert matplotlib.rcParams["lines.linewidth"] == 9


def test_colours_are_variables_of_the_page(frames):
    text = draw(frames[0][0])
    assert "var(--base)" in text
    assert "var(--k1)" in text
    assert not [colour for colour in figures.PAINTS.values() if colour in text]


def test_ids_have_their_prefix(frames):
    text = draw(frames[0][0], prefix="x7-")
    ids = set(re.findall(r' id="([^"]+)"', text))
    assert ids
    assert all(one.startswith("x7-") for one in ids)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    assert used <= ids


def test_text_stays_text_and_is_no_formula(frames):
    from dataclasses import replace

    panel = frames[0][0]
    named = replace(panel, group=replace(panel.group, metric="fd_<b>$x^2$&"))
    text = draw(named)
    assert "fd_&lt;b&gt;$x^2$&amp;" in text
    assert "<b>" not in text


def test_heat_map_cells_are_marked_in_order(frames):
    one = frames[1][0]
    with figures.canvas(3.4, 2.1, margins=(0.42, 0.62, 0.4, 0.08)) as (figure, ax):
        figures.heatmap(one, 1500, ax, scale=(0.0, 0.5))
        text = figures.svg(figure)
    count = len(one.layers) * len(one.timesteps)
    marked = figures.mark_cells(text, [place == 4 for place in range(count)])
    cells = re.findall(r'<path class="cell"[^>]*>', marked)
    assert len(cells) == count
    assert ["var(--empty)" in cell for cell in cells].index(True) == 4
    assert len(figures.palette()) == 64


def test_a_map_with_a_step_that_was_not_measured_is_drawn_empty(frames):
    with figures.canvas() as (figure, ax):
        figures.heatmap(frames[1][0], 123456, ax, scale=(0.0, 1.0))
        assert "cells" in figures.svg(figure)
