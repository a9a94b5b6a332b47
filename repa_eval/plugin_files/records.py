"""The plug-ins that a recipe or a checkpoint names: which are loaded, which differ, and what a user is told."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from repa_eval.errors import UnknownNameError, UserError
from repa_eval.plugin_files.installed import load_installed
from repa_eval.plugin_files.loading import Plugin, loaded

Record = Mapping[str, str]  # its keys are KEYS
KEYS = ("name", "path", "sha256")
SHOWN = 12  # digits of a hash in a message
_warned: set[tuple[str, str | None]] = set()  # recorded and loaded hash
_log = logging.getLogger(__name__)


def records_of(plugins: Iterable[Plugin | None]) -> list[dict[str, str]]:
    """Return the record of each plug-in once, in order of the names; None stands for code of the package's own."""
    unique = {plugin.location.file: plugin for plugin in plugins if plugin is not None}
    return [plugin.record() for plugin in sorted(unique.values(), key=lambda plugin: (plugin.name, plugin.path))]


def recorded_in(recipe: Any) -> list[Record]:
    """Return the plug-ins that a recorded recipe names."""
    entries = recipe.get("plugins") if isinstance(recipe, Mapping) else None
    if not isinstance(entries, list | tuple):
        return []
    return [
        entry for entry in entries if isinstance(entry, Mapping) and all(isinstance(entry.get(k), str) for k in KEYS)
    ]


def missing_from(recorded: Sequence[Record]) -> list[Record]:
    """Return the recorded plug-ins of which no version is loaded."""
    return [record for record in recorded if _loaded_as(record) is None]


def describe_records(recorded: Sequence[Record]) -> list[str]:
    """Return a text for each plug-in: its name, hash and path."""
    return [f"{record['name']} (sha256 {record['sha256'][:SHOWN]}, {record['path']})" for record in recorded]


def hint(missing: Sequence[Record]) -> str:
    """Return what to add to a command so that it knows the plug-ins."""
    files = ", ".join(f"{record['path']} (sha256 {record['sha256'][:SHOWN]})" for record in missing)
    options = " ".join(f"--plugin {record['path']}" for record in missing)
    return f"trained with {files}, which is not loaded: add {options}"


@contextmanager
def naming_plugins(recipe: Any) -> Iterator[None]:
    """Add to an error about an unknown name which recorded plug-ins would bring it, where some are not loaded."""
    try:
        yield
    except UnknownNameError as error:
        if missing := missing_from(recorded_in(recipe)):
            raise UnknownNameError(f"{error}; {hint(missing)}") from error
        raise


def warn_of_differences(recipe: Any, where: str | Path) -> None:
    """Warn, in a line each and once, of recorded plug-ins that are loaded with other contents or not at all."""
    for record in recorded_in(recipe):
        plugin = _loaded_as(record)
        difference = (record["sha256"], None if plugin is None else plugin.sha256)
        if difference in _warned:
            continue
        _warned.add(difference)
        if plugin is None:
            _log.warning("%s: %s", where, hint([record]))
        elif plugin.sha256 != record["sha256"]:
            _log.warning("%s: %s", where, _difference(record, plugin.record()))


def refuse_changed(where: Path, recorded: Sequence[Record], now: Sequence[Record], *, allowed: bool) -> None:
    """UserError with both hashes if a run would go on with other plug-in code than it began with."""
    before = {record["sha256"] for record in recorded}
    after = {record["sha256"] for record in now}
    if allowed or before == after:
        return
    old = [record for record in recorded if record["sha256"] not in after]
    new = [record for record in now if record["sha256"] not in before]
    advice = "put the file back, or add --allow-changed-plugin"
    for record in old:
        for other in new:
            if other["name"] == record["name"] or len(old) == len(new) == 1:
                raise UserError(f"{where}: {_difference(record, other)}; {advice}")
    names = ", ".join(sorted(record["name"] for record in old or new))
    how = "with" if old else "without"
    raise UserError(f"{where} was trained {how} plug-in {names}; name the same plug-ins, or add --allow-changed-plugin")


def _difference(record: Record, other: Record) -> str:
    old, new = record["sha256"][:SHOWN], other["sha256"][:SHOWN]
    return f"trained with plug-in {record['name']} of sha256 {old}, but {other['path']} has {new}"


def _loaded_as(record: Record) -> Plugin | None:
    """Return the loaded plug-in with the recorded contents, else with the name or path."""
    load_installed()
    for same in (
        lambda plugin: plugin.sha256 == record["sha256"],
        lambda plugin: plugin.name == record["name"] or str(plugin.path) == record["path"],
    ):
        for plugin in loaded():
            if same(plugin):
                return plugin
    return None
