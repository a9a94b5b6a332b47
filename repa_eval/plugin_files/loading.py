"""Load plug-ins, know what each registered, and take back what one that fails had registered."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from repa_eval.errors import UserError
from repa_eval.plugin_files.importing import describe, forget, import_location
from repa_eval.plugin_files.location import Location, locate


class Holder(Protocol):
    """A registry, as far as plug-ins know it."""

    kind: str

    def discard(self, name: str) -> None:
        """Forget the object called `name`."""


@dataclass(frozen=True)
class Plugin:
    """A plug-in. sha256: of its file, or of all Python files of its package, when it was loaded."""

    location: Location
    sha256: str

    @property
    def name(self) -> str:
        """The dotted name of its module."""
        return self.location.name

    @property
    def path(self) -> Path:
        """Its file, or the folder of a package."""
        return self.location.path

    def record(self) -> dict[str, str]:
        """Return what a recipe and a checkpoint keep of it."""
        return {"name": self.name, "path": str(self.path), "sha256": self.sha256}


@dataclass
class Registration:
    """An object that is not the package's own. origin: the file of its code; plugin: None where nothing loaded it."""

    holder: Holder
    name: str
    origin: str
    plugin: Plugin | None


_registrations: list[Registration] = []
_loaded: dict[Path, Plugin] = {}  # by file
_loading: list[Plugin] = []  # the last one's code is running


def note(holder: Holder, name: str, origin: str) -> None:
    """Remember that code outside the package registered `name`."""
    _registrations.append(Registration(holder, name, origin, _loading[-1] if _loading else None))


def load(named: str | Path, *, kind: str = "") -> Plugin:
    """Load a plug-in, once however it is named: a Python file, a package folder or a module.

    UserError in one line if it is missing, raises, registers a taken name, an incomplete class, or nothing at all;
    nothing of it stays registered then. kind: what the file is named as ("method"), for the message.
    """
    what = f"{kind} file {str(named)!r}" if kind else f"plug-in {str(named)!r}"
    try:
        location = locate(named)
    except UserError as error:
        raise UserError(f"{what} {error}") from error
    if location.file in _loaded:
        return _loaded[location.file]
    plugin = Plugin(location, location.sha256())
    with whole(plugin, what):
        import_location(location)
        _adopt(plugin)
        if not any(entry.plugin == plugin or _lies_in(entry.origin, location) for entry in _registrations):
            raise UserError(
                f"must register exactly one {kind}; it registers nothing"
                if kind
                else "it registers nothing; use a decorator of repa_eval.plugins, such as @method or @teacher"
            )
    _loaded[location.file] = plugin
    return plugin


def unload(plugin: Plugin) -> None:
    """Forget a plug-in, its objects and its modules: the next `load` runs its code again."""
    _loaded.pop(plugin.location.file, None)
    _take_back(plugin)
    forget(plugin.location)


def loaded() -> list[Plugin]:
    """Return the plug-ins that are loaded, in their order."""
    return list(_loaded.values())


def registered_by(plugin: Plugin) -> list[tuple[str, str]]:
    """Return (kind, name) of what a plug-in registered."""
    return [(entry.holder.kind, entry.name) for entry in _registrations if entry.plugin == plugin]


def plugin_of(holder: Holder, name: str) -> Plugin | None:
    """Return the plug-in that registered an object, None for one of the package's own."""
    entries = (entry for entry in reversed(_registrations) if entry.holder is holder and entry.name == name)
    return next((entry.plugin for entry in entries), None)


@contextmanager
def whole(plugin: Plugin, what: str) -> Iterator[None]:
    """Attribute to `plugin` what is registered inside; if anything is raised, take that back and raise one line."""
    before = set(sys.modules)
    _loading.append(plugin)
    try:
        yield
    except BaseException as error:
        _take_back(plugin)
        forget(plugin.location, keep=before)
        if isinstance(error, UserError):
            raise UserError(f"{what}: {error}") from error
        if isinstance(error, (Exception, SystemExit)):  # SystemExit: a script that reads arguments as it is imported
            raise UserError(f"{what} cannot be imported ({describe(error)}); correct it or leave it out") from error
        raise
    finally:
        _loading.pop()


def _take_back(plugin: Plugin) -> None:
    for entry in [entry for entry in _registrations if entry.plugin == plugin]:
        _registrations.remove(entry)
        entry.holder.discard(entry.name)


def _adopt(plugin: Plugin) -> None:
    """Attribute to `plugin` what its files registered while something else imported them."""
    for entry in _registrations:
        if entry.plugin is None and _lies_in(entry.origin, plugin.location):
            entry.plugin = plugin


def _lies_in(origin: str, location: Location) -> bool:
    return Path(origin).is_absolute() and location.covers(origin)
