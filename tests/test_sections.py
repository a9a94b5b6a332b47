"""The sections of the report: what the page makes of the registered ones, and of one that a user writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import report_example as sample
from repa_eval.errors import UserError
from repa_eval.interfaces.section import SECTIONS, in_order, section
from repa_eval.reports.drawing.grids import grids
from repa_eval.reports.html import render
from repa_eval.results import Row

CODE = """
from repa_eval.interfaces.section import section
from repa_eval.reports.drawing import figures
from repa_eval.reports.drawing.figure import Figure
from repa_eval.reports.page import Page

@section(order=25, anchor="best", title="Best <values>", name="Best"{more})
def build(page: Page):
    values = [row.value for row in page.rows if row.metric == "fd_digits" and row.value]
    if not values:
        return None
    with figures.canvas() as (figure, ax):
        figures.lines(page.panels[0], ax, xlabel="step")
        svg = figures.svg(figure)
    return {{"best": min(values), "evil": "<script>", "figure": Figure(svg, "curves"), "data": {{"best": [1, 2]}}}}
"""
TEMPLATE = "<p>best {{ best | number }} of {{ page.arms | length }} {{ evil }}</p>\n{{ legend() }}{{ draw(figure) }}\n"


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what a test registers."""
    SECTIONS.names()
    for table in ("_objects", "_origins"):
        monkeypatch.setattr(SECTIONS, table, dict(getattr(SECTIONS, table)))


def example(runs: tuple[str, ...] = ("vanilla", "repa")) -> dict[str, object]:
    inputs = sample.example(runs)
    rows = [row for row in inputs["rows"] if row.metric == "fd_digits"]
    return inputs | {"rows": rows, "curves": [], "media": {}}


def test_a_section_is_one_file_and_one_template(tmp_path: Path, own: None) -> None:
    before = render(**example())
    (tmp_path / "best.py").write_text(CODE.format(more=""))
    (tmp_path / "best.html").write_text(TEMPLATE)
    assert SECTIONS.load_file(tmp_path / "best.py") == "best"
    page = render(**example())
    part = page.partition('<section id="best">')[2].partition("</section>")[0]
    assert part.startswith("\n<h2>Best &lt;values&gt;</h2>\n<p>best 0.742 of 2 &lt;script&gt;</p>")
    assert '<ul class="legend"' in part
    assert "<svg" in part
    assert '<a href="#finals">Final values</a>\n<a href="#best">Best</a>\n<a href="#quality">' in page
    assert page.index('id="finals"') < page.index('id="best"') < page.index('id="quality"')
    assert '{"best":[1,2]}' in page
    ids = re.findall(r' id="(f\d+-[^"]*)"', page)
    assert len(ids) == len(set(ids)) > len(re.findall(r' id="(f\d+-[^"]*)"', before))
    little = render([Row(run="a", metric="fid", step=1, value=3.0)])
    assert 'id="best"' not in little
    assert "#best" not in little


def test_a_header_stands_above_the_navigation(tmp_path: Path, own: None) -> None:
    (tmp_path / "best.py").write_text(CODE.format(more=", header=True, template='other.html'"))
    (tmp_path / "other.html").write_text("<b>{{ best | number }}</b>")
    SECTIONS.load_file(tmp_path / "best.py")
    page = render(**example())
    assert page.index("<h1>") < page.index("<b>0.742</b>") < page.index("<nav")
    assert "#best" not in page


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "best.html"),
        ("{{ nothing }}", "'nothing' is undefined"),
        ("{% if %}", "Expected an expression"),
    ],
)
def test_a_wrong_template_is_one_line(tmp_path: Path, own: None, text: str | None, expected: str) -> None:
    (tmp_path / "best.py").write_text(CODE.format(more=""))
    if text is not None:
        (tmp_path / "best.html").write_text(text)
    SECTIONS.load_file(tmp_path / "best.py")
    with pytest.raises(UserError, match=r"section 'best' of the report: template .*best\.html") as caught:
        render(**example())
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("anchor", ["", "two words", "Upper", "a/b", "1st"])
def test_an_anchor_is_a_plain_word(anchor: str) -> None:
    with pytest.raises(UserError, match="lower-case letters, digits and hyphens"):
        section(order=1, anchor=anchor, title="Any")


def test_every_registered_section_has_a_template_and_a_place_of_its_own() -> None:
    sections = in_order()
    assert [entry.anchor for entry in sections][:3] == ["summary", "finals", "quality"]
    assert all(entry.template.is_file() for entry in sections)
    assert len({entry.order for entry in sections}) == len(sections)
    kinds = [kind for entry in sections for kind in entry.grids]
    assert sorted(kinds) == ["captions", "interpolation", "neighbours", "pca"]


def test_a_kind_that_no_section_claims_is_no_grid() -> None:
    media = {"a/pca-0000005.png": sample.tiles("vanilla", 5)}
    assert grids(media, [], 9, kinds=()) == ([], [])
    assert grids(media, [], 9, kinds=("pca",))[1] == [("a/pca", "the results name no such run")]
