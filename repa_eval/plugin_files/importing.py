"""Import the code of a plug-in once, however it was named; forget it again."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Collection
from pathlib import Path
from types import ModuleType

from repa_eval.errors import first_line
from repa_eval.plugin_files.location import INIT, Location


def import_location(location: Location) -> ModuleType:
    """Return the module of a plug-in: the one that is imported already, or a new one.

    A file keeps the name that an import statement would use unless another module has it, so that `import my_loss`
    elsewhere finds the same module. What the code raises is passed on.
    """
    return imported(location) or _import(location)


def imported(location: Location) -> ModuleType | None:
    """Return the module that was made from the location's file, under whatever name, if there is one."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name == "__main__" or not isinstance(file, str) or os.path.basename(file) != location.file.name:
            continue
        if os.path.realpath(file) == str(location.file):
            return module
    return None


def forget(location: Location, *, keep: Collection[str] = ()) -> None:
    """Remove the location's modules from sys.modules, except those named in `keep`: the next import runs the code."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name not in keep and name != "__main__" and isinstance(file, str) and location.covers(file):
            del sys.modules[name]


def describe(error: BaseException) -> str:
    """Return an exception in one line, with the place in a file that Python could not read."""
    if isinstance(error, SyntaxError) and error.lineno is not None:
        return f"{type(error).__name__} in line {error.lineno}: {error.msg}"
    text = first_line(error)
    return text if text == type(error).__name__ else f"{type(error).__name__}: {text}"


def _import(location: Location) -> ModuleType:
    package = location.package
    root = location.file if package is None else package / INIT
    top, _, rest = location.name.partition(".")
    name = _name_for(top, root)
    if name not in sys.modules:
        _run(name, root, package)
    return importlib.import_module(f"{name}.{rest}") if rest else sys.modules[name]


def _name_for(name: str, root: Path) -> str:
    """Return `name`, or one with a hash of the path where `import name` would give another file."""
    alias = re.sub(r"\W", "_", f"{name}_{hashlib.sha256(str(root).encode()).hexdigest()[:8]}")
    if alias in sys.modules or not name.isidentifier():
        return alias
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # a module without a spec, such as __main__
        return alias
    leads_here = spec is not None and spec.origin is not None and os.path.realpath(spec.origin) == str(root)
    return name if spec is None or leads_here else alias


def _run(name: str, file: Path, package: Path | None) -> None:
    folders = None if package is None else [str(package)]
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=folders)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
