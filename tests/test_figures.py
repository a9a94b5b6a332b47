"""Drawings: equal text for equal frames, colours of the page, cells for the script."""

from __future__ import annotations

import re
from dataclasses import replace

import matplotlib
import pytest

import report_example as sample
from repa_eval.commands.shared.metric_words import metric_words
from repa_eval.reports.drawing import figures
from repa_eval.reports.numbers.arms import arms_of
from repa_eval.reports.numbers.frames import Curve, Group, Level, Panel, Trace, maps_of, quality_panels
from repa_eval.reports.numbers.profiles import over_layers
from repa_eval.reports.numbers.words import Metrics

METRICS = Metrics(metric_words())


@pytest.fixture(scope="module")
def frames():
    inputs = sample.example(("vanilla", "repa-random"))
    arms = arms_of(inputs["rows"], inputs["runs"])
    return quality_panels(inputs["rows"], arms, METRICS), maps_of(inputs["rows"], arms)


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
    panel = frames[0][0]
    named = replace(panel, group=replace(panel.group, metric="fd_<b>$x^2$&"), label="")
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


def test_the_colour_bar_ends_in_the_colours_of_the_lowest_and_the_highest_cell(frames):
    one = replace(frames[1][0], values={1: ((0.0, 0.1), (0.3, 0.5))}, layers=(1, 2), timesteps=(0.1, 0.5))
    with figures.canvas(3.4, 2.1) as (figure, ax):
        figures.heatmap(one, 1, ax, scale=(0.0, 0.5))
        fills = re.findall(r"fill: (#\w{6})", figures.svg(figure).partition('cells"')[2])
    assert (fills[0], fills[3]) == (figures.palette()[0], figures.palette()[-1])
    assert (fills[0], fills[3]) == (figures.palette(9)[0], figures.palette(9)[-1])


def test_a_map_with_a_step_that_was_not_measured_is_drawn_empty(frames):
    with figures.canvas() as (figure, ax):
        figures.heatmap(frames[1][0], 123456, ax, scale=(0.0, 1.0))
        assert "cells" in figures.svg(figure)


@pytest.mark.parametrize("value", [0.001, 0.2, 0.93, 1.0, 7.5])
@pytest.mark.parametrize("log", [False, True])
def test_a_level_lies_inside_the_axes_with_room_for_its_name(frames, value, log):
    panel = frames[0][0]
    with figures.canvas() as (figure, ax):
        figures.lines(replace(panel, levels=(Level(value, "digits-vit"),)), ax, xlabel="step", log=log)
        bottom, top = ax.get_ylim()
        assert bottom <= value < top
        place = ax.transAxes.inverted().transform(ax.transData.transform((0, value)))[1]
        assert place + figures.NEAR <= 1.001
        assert "digits-vit" in figures.svg(figure)


def test_a_level_above_the_curves_of_a_profile_extends_it(frames):
    panel = over_layers([one for one in frames[1] if one.group.metric == "probe_accuracy"], 0.1)
    with figures.canvas() as (_, ax):
        figures.profile(replace(panel, levels=(Level(0.99, "digits-vit"),)), ax, xlabel="block", mark=3)
        assert ax.get_ylim()[0] == 0
        assert ax.get_ylim()[1] > 0.99


def named(levels, points=((1.0, 0.2), (6.0, 0.2))):
    arm = arms_of(sample.quality_rows("vanilla"), {})[0]
    panel = Panel(Group("probe_accuracy", None), (Curve(arm, tuple(points), (tuple(points),)),), levels)
    with figures.canvas() as (_, ax):
        figures.profile(panel, ax, xlabel="block")
        return [(text.get_text(), text.get_ha(), text.get_va()) for text in ax.texts]


def test_levels_that_lie_close_together_are_named_on_both_sides():
    assert named((Level(0.90, "low"), Level(0.93, "high"))) == [("low", "right", "top"), ("high", "right", "bottom")]
    assert named((Level(0.5, "low"), Level(0.93, "high"))) == [("low", "right", "bottom"), ("high", "right", "bottom")]


def test_a_levels_name_makes_way_for_a_curve():
    rising = ((1.0, 0.1), (5.0, 0.55), (6.0, 0.53))
    assert named((Level(0.5, "teacher"),), rising) != [("teacher", "right", "bottom")]


def test_traces_name_the_first_and_the_last_step():
    arm = arms_of(sample.quality_rows("vanilla"), {})[0]
    way = Trace(arm, (500, 1000, 1500), ((0.6, 3.0), (0.7, 2.0), (0.8, 1.0)), (((0.6, 3.0), (0.7, 2.0), (0.8, 1.0)),))
    with figures.canvas() as (figure, ax):
        figures.traces([way], ax, xlabel="probe_accuracy", ylabel="fd_digits")
        assert [(text.get_text(), text.xy) for text in ax.texts] == [("500", (0.6, 3.0)), ("1500", (0.8, 1.0))]
        assert ax.get_yscale() == "log"
        assert figures.svg(figure) == figures.svg(figure)


def test_seeds_are_faint_lines_behind_the_mean():
    inputs = sample.example(("vanilla", "vanilla-s1"))
    panel = quality_panels(inputs["rows"], arms_of(inputs["rows"], inputs["runs"]), METRICS)[0]
    with figures.canvas() as (_, ax):
        figures.lines(replace(panel, levels=()), ax, xlabel="step")
        assert [line.get_alpha() for line in ax.lines] == [0.45, 0.45, None]


def test_few_ticks_where_a_level_stretches_the_axis(frames):
    panel = replace(frames[0][0], levels=())
    counts = []
    for levels in ((), (Level(0.001, "far"),)):
        with figures.canvas() as (_, ax):
            figures.lines(replace(panel, levels=levels), ax, xlabel="step", log=True)
            low, high = ax.get_ylim()
            counts.append(sum(low <= tick <= high for tick in ax.get_yticks()))
    assert max(counts) <= 7
