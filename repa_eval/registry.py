"""Registries: an object is found by name because its file lies in a folder, or because a plug-in names it.

The folder is imported at the first lookup only, so that listing names costs no import of torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from repa_eval.errors import UserError, unknown

T = TypeVar("T")


class Registry(Generic[T]):
    """Named objects of one kind.

    kind: the word used in messages ("metric").
    packages: dotted packages, every module of which registers itself on import; what their modules share lies in a
        folder below.
    group: entry-point group through which installed plug-ins add their own.
    """

    def __init__(self, kind: str, *packages: str, group: str | None = None) -> None:
        self.kind = kind
        self.packages = packages
        self.group = group
        self._objects: dict[str, T] = {}
        self._origins: dict[str, str] = {}
        self._loaded = False

    def register(self, name: str, *, source: Any = None) -> Callable[[T], T]:
        """Return a decorator that records its argument under `name` and hands it back unchanged.

        source: the function or class whose file counts as the origin, where the argument itself has none.
        """

        def record(obj: T) -> T:
            module = (source or obj).__module__
            origin = str(getattr(sys.modules.get(module), "__file__", module))
            if name in self._objects:
                raise UserError(
                    f"{self.kind} {name!r} is registered twice: by {self._origins[name]} and by {origin}; rename one"
                )
            self._objects[name] = obj
            self._origins[name] = origin
            return obj

        return record

    def get(self, name: str) -> T:
        """Return the object called `name`; UserError with the nearest name if there is none."""
        if name not in self._objects:
            self._load()
        if name not in self._objects:
            raise unknown(self.kind, name, self._objects)
        return self._objects[name]

    def names(self) -> list[str]:
        """Return every registered name, sorted. Imports the folder."""
        self._load()
        return sorted(self._objects)

    def items(self) -> Iterator[tuple[str, T]]:
        """Yield (name, object) in order of the names. Imports the folder."""
        for name in self.names():
            yield name, self._objects[name]

    def modules(self) -> list[str]:
        """Return the module names of the folders without importing any of them."""
        return sorted(dotted.rpartition(".")[2] for dotted in self._dotted_modules())

    def load_file(self, path: str | Path) -> str:
        """Import one file of the user's and return the single name that it registered."""
        self._load()
        file = Path(path).resolve()
        if not file.is_file():
            raise UserError(f"{self.kind} file {str(path)!r} does not exist")
        for name, origin in self._origins.items():
            if Path(origin) == file:
                return name
        before = set(self._objects)
        module_name = f"repa_eval_user_{file.stem}"
        spec = importlib.util.spec_from_file_location(module_name, file)
        if spec is None or spec.loader is None:
            raise UserError(f"{self.kind} file {str(path)!r} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        spec.loader.exec_module(module)
        added = sorted(set(self._objects) - before)
        if len(added) != 1:
            found = ", ".join(added) or "nothing"
            raise UserError(
                f"{self.kind} file {str(path)!r} must register exactly one {self.kind}; it registers {found}"
            )
        return added[0]

    def _dotted_modules(self) -> list[str]:
        found = []
        for package in self.packages:
            spec = importlib.util.find_spec(package)
            if spec is None or spec.submodule_search_locations is None:
                raise AssertionError(f"{package} is not a package")
            stems = {path.stem for folder in spec.submodule_search_locations for path in Path(folder).glob("*.py")}
            found += sorted(f"{package}.{stem}" for stem in stems - {"__init__"})
        return found

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        for module in self._dotted_modules():
            importlib.import_module(module)
        if self.group:
            for entry in entry_points(group=self.group):
                entry.load()
