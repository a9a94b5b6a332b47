"""The contract of a section of the report: a function that fills a template, and what the page says of it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from repa_eval.errors import UserError
from repa_eval.registry import Registry

Build = Callable[[Any], Mapping[str, Any] | None]
Shrink = Callable[[Mapping[str, Any], int], tuple[Mapping[str, Any], str]]
F = TypeVar("F", bound=Build)
_ANCHOR = re.compile(r"[a-z][a-z0-9-]*")


@dataclass(frozen=True, kw_only=True)
class Section:
    """One section of the report.

    build: takes the prepared inputs (`repa_eval.reports.page.Page`) and returns the variables of the template, or None
        where there is nothing to show. A variable `data` goes to the page's script as JSON instead.
    template: Jinja file. Besides the variables it sees `page`, and the macros `draw(figure)`, `legend()`,
        `tables(grids, captions)` and `protocol_link(hash)`.
    order: position on the page, small first. header: stands above the navigation, without a heading of its own.
    pictures: shows `page.pictures`. Such a section is built twice: without pictures, to learn how much room the page
        leaves, and with those that fit.
    grids: the kinds of pictures media/<kind>-<step>.png that are tables of tiles, described by a .json of that name.
    shrink: takes the section's `data` and the bytes that they may have as JSON, on a page that is too large; returns
        smaller ones, and in words what was left out, for the list of what is missing.
    """

    build: Build
    template: Path
    order: float
    anchor: str
    title: str
    name: str  # in the navigation
    header: bool = False
    pictures: bool = False
    grids: tuple[str, ...] = ()
    shrink: Shrink | None = None


SECTIONS: Registry[Section] = Registry("section of the report", "repa_eval.reports.sections")


def section(
    *,
    order: float,
    anchor: str,
    title: str,
    name: str | None = None,
    template: str | None = None,
    header: bool = False,
    pictures: bool = False,
    grids: tuple[str, ...] = (),
    shrink: Shrink | None = None,
) -> Callable[[F], F]:
    """Register a section of the report; the function itself is returned unchanged.

    name: in the navigation, if shorter than the title. template: file beside that of the function; the default has the
    function's file name with .html. For the other arguments see `Section`. UserError: an anchor that is no plain word.
    """
    if not _ANCHOR.fullmatch(anchor):
        raise UserError(f"section anchor {anchor!r}: use lower-case letters, digits and hyphens, e.g. 'my-section'")

    def record(function: F) -> F:
        file = Path(inspect.getfile(function))
        entry = Section(
            build=function,
            template=file.with_name(template) if template else file.with_suffix(".html"),
            order=order,
            anchor=anchor,
            title=title,
            name=title if name is None else name,
            header=header,
            pictures=pictures or bool(grids),
            grids=grids,
            shrink=shrink,
        )
        SECTIONS.register(anchor, source=function)(entry)
        return function

    return record


def in_order() -> list[Section]:
    """Return every registered section in its place on the page."""
    return sorted((entry for _, entry in SECTIONS.items()), key=lambda entry: (entry.order, entry.anchor))
