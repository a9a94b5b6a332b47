"""What the record in a file may name by itself: data and extractors that are registered under a plain name.

A path, a name on the hub or a module in a record is somebody else's choice of what this machine opens. The user makes
it instead, by the option that the error shows. SECURITY.md states the rule.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from repa_eval.errors import UserError, short_repr
from repa_eval.interfaces.extractor import EXTRACTORS
from repa_eval.interfaces.images import DATA


def recorded_data(name: object, where: str | Path, option: str) -> str | None:
    """Return the data that the record of the file `where` names, None where it names none.

    option: by which the user names data, "--data" or "images=". UserError unless the name is that of a registered
    layout which nothing follows: such data come with this package or a plug-in.
    """
    if name is None or name == "":
        return None
    if isinstance(name, str) and is_named_alone(name):
        return name
    add = _added(option, name)
    raise UserError(
        f"{where}: its record names the data {short_repr(name)}; they are opened if you name them: add {add}"
    )


def is_named_alone(data: str) -> bool:
    """Return whether data are registered under this very name, with no path or other name behind it."""
    return data in DATA.names() and DATA.get(data).recognises is None


def recorded_extractor(name: object, where: str | Path) -> str | None:
    """Return the extractor that a record names, None where it names none; UserError unless it is registered."""
    if name is None or (isinstance(name, str) and name in EXTRACTORS.names()):
        return name
    given = f"{where}: its record names the extractor {short_repr(name)}"
    raise UserError(f"{given}, which is not registered; choose one with --extractor")


def _added(option: str, name: object) -> str:
    """Return the option with the recorded name behind it."""
    if not isinstance(name, str) or not name.isprintable():
        return option
    return f"{option}{name!r}" if option.endswith("=") else f"{option} {shlex.quote(name)}"
