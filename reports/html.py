"""The report: rows in, one self-contained HTML file out. Pure: no clock, no network, no randomness."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError, pass_context
from jinja2.runtime import Context
from markupsafe import Markup

from repa_eval.errors import UserError
from repa_eval.interfaces.section import Section, in_order
from repa_eval.reports.drawing.figures import prefixed
from repa_eval.reports.inputs import Inputs, collect
from repa_eval.reports.numbers.protocols import Records
from repa_eval.reports.numbers.words import Metrics, number
from repa_eval.reports.page import Page, fitting, prepare
from repa_eval.results import Row

__all__ = ["Inputs", "collect", "render"]

LIMIT = 2_900_000  # bytes of a report, so that it stays below 3 MB
FOR_PICTURES = 400_000  # of them, where there are pictures
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Part:
    """A section as it stands on the page; `data` goes to the script."""

    section: Section
    html: Markup
    data: Mapping[str, Any] = field(default_factory=dict)


def render(
    rows: Sequence[Row],
    *,
    curves: Sequence[Row] = (),
    media: Mapping[str, bytes] | None = None,
    protocols: Records | None = None,
    runs: Mapping[str, Mapping[str, Any]] | None = None,
    metrics: Mapping[str, Mapping[str, Any]] | None = None,
    title: str = "Representation alignment report",
) -> str:
    """Return the report as HTML text; equal arguments give equal bytes.

    rows: the table of results, of one run or many. curves: rows of log.jsonl. media: "<run>/<kind>-<step>.png"
    -> PNG bytes. protocols: hash -> record. runs: name -> contents of run.json. metrics: name -> {"better",
    "meaning", "kind"}, see `Metrics`; what is not in it is drawn without a direction. UserError if there are no rows,
    or if a section's template is missing or wrong.
    """
    if not rows:
        raise UserError("nothing to report: the table of results is empty")
    page = prepare(rows, curves, media or {}, protocols or {}, runs or {}, Metrics(metrics or {}))
    sections = in_order()
    macros = _environment().get_template("macros.html").make_module({"arms": page.arms, "ids": count(1)})
    parts = {section.anchor: _part(section, page, macros) for section in sections}
    size = len(_whole(page, parts, title).encode())
    excess = size - (LIMIT - FOR_PICTURES if media else LIMIT)
    left_out: list[tuple[str, str]] = []
    if excess > 0:
        parts, left_out = _shrunk(parts, excess)
        size = len(_whole(page, parts, title).encode())
    if media or left_out:
        room = max(0, LIMIT - size) * 3 // 4  # base64 makes 4 bytes of 3
        kinds = [kind for section in sections for kind in section.grids]
        pictures = fitting(media or {}, page.arms, kinds, room)
        page = replace(page, pictures=replace(pictures, left_out=(*pictures.left_out, *left_out)))
        parts |= {section.anchor: _part(section, page, macros) for section in sections if section.pictures}
    return _whole(page, parts, title)


def _shrunk(parts: Mapping[str, Part | None], excess: int) -> tuple[dict[str, Part | None], list[tuple[str, str]]]:
    """Return the parts with `excess` bytes of data less, as far as their sections can do without, and what went."""
    smaller, left_out = dict(parts), []
    for anchor, part in parts.items():
        if part is None or part.section.shrink is None or excess <= 0:
            continue
        before = len(_script_json(part.data))
        data, what = part.section.shrink(part.data, max(0, before - excess))
        smaller[anchor] = replace(part, data=data)
        excess -= before - len(_script_json(data))
        left_out.append((f"numbers of {part.section.name}", what))
    return smaller, left_out


def _part(section: Section, page: Page, macros: Any) -> Part | None:
    """Return a section filled with what it makes of the page; None where it has nothing to show."""
    content = section.build(page)
    if content is None:
        return None
    names = ("draw", "legend", "tables", "protocol_link")
    variables = {name: getattr(macros, name) for name in names} | {"page": page} | dict(content)
    try:
        html = _template(section.template).render(variables)
    except (OSError, TemplateError) as error:
        raise UserError(f"section {section.anchor!r} of the report: template {section.template}: {error}") from error
    return Part(section, Markup(html), content.get("data", {}))


def _whole(page: Page, parts: Mapping[str, Part | None], title: str) -> str:
    """Return the page around its parts."""
    shown = [part for part in parts.values() if part is not None]
    data: dict[str, Any] = {}
    for part in shown:
        data |= part.data
    return str(
        _environment()
        .get_template("report.html")
        .render(
            title=title,
            subtitle=_subtitle(page),
            parts=shown,
            versions=sorted({row.version for row in page.rows}),
            data=_script_json(data),
            css=Markup(_asset("report.css")),
            js=Markup(_asset("report.js")),
        )
    )


def _subtitle(page: Page) -> str:
    names = [run for arm in page.arms for run in arm.runs]
    last = max((row.step for row in page.rows if row.step is not None), default=None)
    parts = [f"{len(names)} run{'s' if len(names) != 1 else ''}: {', '.join(names)}"]
    return " · ".join(parts + ([f"up to step {last}"] if last is not None else []) + [f"{len(page.rows)} numbers"])


def _script_json(data: Mapping[str, Any]) -> Markup:
    """Return JSON that cannot close its script element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _asset(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


@pass_context
def _drawing(context: Context, svg: str) -> Markup:
    """Return our own SVG, whose text matplotlib has escaped, with ids that no other drawing of the page has."""
    return Markup(prefixed(svg, f"f{next(context['ids'])}-"))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["drawing"] = _drawing
    return environment


def _template(file: Path) -> Any:
    return _environment().from_string(file.read_text(encoding="utf-8"))
