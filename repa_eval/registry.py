"""Registries: an object is found by name because its file lies in a folder, or because a plug-in registers it.

The folder, and what is installed, is imported at the first lookup only, so that listing names costs no import of torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from repa_eval.errors import UserError, first_line, unknown
from repa_eval.plugin_files import installed, loading
from repa_eval.plugin_files.loading import Plugin

T = TypeVar("T")


class Registry(Generic[T]):
    """Named objects of one kind.

    kind: the word used in messages ("metric").
    packages: dotted packages, every module of which registers itself on import; what their modules share lies in a
        folder below.
    group: an entry-point group of this kind alone, beside `repa_eval.plugins` for every kind.
    """

    def __init__(self, kind: str, *packages: str, group: str | None = None) -> None:
        self.kind = kind
        self.packages = packages
        self.group = group
        self._objects: dict[str, T] = {}
        self._origins: dict[str, str] = {}  # name -> file
        self._folder_imported = False

    def register(self, name: str, *, source: Any = None) -> Callable[[T], T]:
        """Return a decorator that records its argument under `name` and hands it back unchanged.

        source: the function or class whose file counts as the origin, where the argument itself has none.
        UserError for a name that is taken, and for a class that lacks abstract members of its contract.
        """

        def record(obj: T) -> T:
            subject: Any = obj if source is None else source
            module = str(getattr(subject, "__module__", None) or type(subject).__module__)
            origin = str(getattr(sys.modules.get(module), "__file__", None) or module)
            built_in = module.startswith(tuple(f"{package}." for package in self.packages))
            if not built_in and self._mentions(name):
                self._import_folder()  # so that a name of ours is refused here and not at a later lookup
            if name in self._objects:
                raise UserError(
                    f"{self.kind} {name!r} is registered twice: by {self._origins[name]} and by {origin}; rename one"
                )
            if missing := missing_members(subject):
                raise UserError(
                    f"{self.kind} {name!r}: class {subject.__qualname__} in {origin} lacks {', '.join(missing)}; "
                    f"its contract {_contract(subject)} asks for {'it' if len(missing) == 1 else 'them'}"
                )
            self._objects[name] = obj
            self._origins[name] = origin
            if not built_in:
                loading.note(self, name, origin)
            return obj

        return record

    def get(self, name: str) -> T:
        """Return the object called `name`; UserError with the nearest name if there is none."""
        if name not in self._objects:
            self._import_folder()
        if name not in self._objects:
            installed.load_installed(self.group)
        if name not in self._objects:
            raise unknown(self.kind, name, self._objects)
        return self._objects[name]

    def build(self, name: str, *arguments: Any) -> Any:
        """Return what the builder called `name` makes; UserError where its class lacks members of its contract."""
        builder: Any = self.get(name)
        try:
            return builder(*arguments)
        except TypeError as error:
            if "abstract class" not in str(error):
                raise
            raise UserError(f"{self.kind} {name!r} of {self._origins[name]}: {first_line(error)}") from error

    def names(self) -> list[str]:
        """Return every registered name, sorted. Imports the folder and the installed plug-ins."""
        self._import_folder()
        installed.load_installed(self.group)
        return sorted(self._objects)

    def items(self) -> Iterator[tuple[str, T]]:
        """Yield (name, object) in order of the names. Imports the folder and the installed plug-ins."""
        for name in self.names():
            yield name, self._objects[name]

    def modules(self) -> list[str]:
        """Return the module names of the folders without importing any of them."""
        return sorted(dotted.rpartition(".")[2] for dotted in self._dotted_modules())

    def discard(self, name: str) -> None:
        """Forget the object called `name`, if there is one."""
        self._objects.pop(name, None)
        self._origins.pop(name, None)

    def plugin_of(self, name: str) -> Plugin | None:
        """Return the plug-in that registered `name`, None for an object of the package's own."""
        return loading.plugin_of(self, name)

    def load_file(self, path: str | Path) -> str:
        """Load the plug-in at `path` and return the single name of this kind that it registers."""
        plugin = loading.load(path, kind=self.kind)
        names = sorted(name for name in self._objects if self.plugin_of(name) == plugin)
        if len(names) != 1:
            registered = ", ".join(names) or "nothing"
            raise UserError(
                f"{self.kind} file {str(path)!r} must register exactly one {self.kind}; it registers {registered}"
            )
        return names[0]

    def _dotted_modules(self) -> list[str]:
        folders = {package: sorted(self._files(package)) for package in self.packages}
        return [f"{package}.{file.stem}" for package, files in folders.items() for file in files]

    def _files(self, *packages: str) -> Iterator[Path]:
        """Yield the modules' files of some packages, of all without a name, importing none of them."""
        for package in packages or self.packages:
            spec = importlib.util.find_spec(package)
            if spec is None or spec.submodule_search_locations is None:
                raise AssertionError(f"{package} is not a package")
            for folder in spec.submodule_search_locations:
                yield from (file for file in Path(folder).glob("*.py") if file.name != "__init__.py")

    def _mentions(self, name: str) -> bool:
        """Return whether a file of the folder holds `name` in quotes: looking costs no import, such as torch's."""
        quoted = (f'"{name}"', f"'{name}'")
        return any(text in file.read_text(encoding="utf-8") for file in self._files() for text in quoted)

    def _import_folder(self) -> None:
        if not self._folder_imported:
            self._folder_imported = True
            try:
                for module in self._dotted_modules():
                    importlib.import_module(module)
            except BaseException:
                self._folder_imported = False  # the next lookup fails in the same way, and not for a missing name
                raise


def missing_members(obj: Any) -> list[str]:
    """Return the abstract members that a class has not written, none for anything but a class."""
    return sorted(getattr(obj, "__abstractmethods__", ())) if inspect.isclass(obj) else []


def _contract(cls: type) -> str:
    """Return the name of the class that declares the first missing member."""
    member = missing_members(cls)[0]
    return next(base.__qualname__ for base in reversed(cls.__mro__) if member in vars(base))
