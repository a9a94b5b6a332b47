"""Plug-ins that nobody names in a command: installed ones (entry points) and those of REPA_EVAL_PLUGINS.

One that cannot be loaded is a warning: only the command that needs it stops, because a name is unknown to it.
"""

from __future__ import annotations

import logging
import os
import re
from importlib.metadata import EntryPoint, entry_points

from repa_eval.errors import UserError
from repa_eval.plugin_files.loading import load

GROUP = "repa_eval.plugins"  # entry points of plug-ins of any kind
VARIABLE = "REPA_EVAL_PLUGINS"  # files or modules, joined by commas or by what joins the entries of PATH
_log = logging.getLogger(__name__)
_tried: set[str] = set()  # groups of entry points, and what the variable named


def load_installed(group: str | None = None) -> None:
    """Load, once in a process, the plug-ins of the variable, of `repa_eval.plugins` and of a further group."""
    for named in filter(None, re.split(f"[,{re.escape(os.pathsep)}]", os.environ.get(VARIABLE, ""))):
        if _first(f"{VARIABLE} {named}"):
            _load_or_warn(named.strip(), f"correct it, or take it out of {VARIABLE}")
    for each in (GROUP, group):
        if each is not None and _first(each):
            for entry in sorted(entry_points(group=each), key=lambda entry: (entry.name, entry.value)):
                _load_entry(entry)


def forget_installed() -> None:
    """Let the next look-up load installed plug-ins again."""
    _tried.clear()


def _first(what: str) -> bool:
    if what in _tried:
        return False
    _tried.add(what)
    return True


def _load_entry(entry: EntryPoint) -> None:
    dist = f" of {entry.dist.name}" if entry.dist is not None else ""
    advice = f"update or uninstall the package (entry point {entry.name!r}{dist})"
    if _load_or_warn(entry.module, advice) and entry.attr:
        try:
            entry.load()
        except AttributeError as error:
            _log.warning("plug-in '%s' is not complete (%s); %s", entry.module, error, advice)


def _load_or_warn(named: str, advice: str) -> bool:
    try:
        load(named)
    except UserError as error:
        _log.warning("%s; %s", str(error).removesuffix("; correct it or leave it out"), advice)
        return False
    return True
