"""Text of a file inside Markdown that we write: it stays text, whatever letters it has."""

from __future__ import annotations

import re

from repa_eval.errors import one_line

_ACTIVE = re.compile(r"[\\`*_\[\]<>&#|~!$]|^[-+=]|(?<=:)/(?=/)")
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}


def escaped(value: object) -> str:
    """Return a value as one line in which nothing is a heading, a list, emphasis, a link, code or HTML."""
    return _ACTIVE.sub(lambda found: _ENTITIES.get(found[0], f"\\{found[0]}"), one_line(str(value)))


def code(value: object) -> str:
    """Return a value as one line for the inside of a code span."""
    return one_line(str(value)).replace("`", "'")
