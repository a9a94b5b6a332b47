"""Where the code of a plug-in lies, and its hash. Finding a file runs nothing of it."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from repa_eval.errors import UserError, first_line

INIT = "__init__.py"


@dataclass(frozen=True)
class Location:
    """The code of one plug-in.

    name: dotted, as it would be imported ("my_loss", "my_package.losses").
    file: the Python file, symbolic links resolved; of a package its __init__.py.
    """

    name: str
    file: Path

    @property
    def path(self) -> Path:
        """The file, or the folder of a package: what a user names."""
        return self.file.parent if self.file.name == INIT else self.file

    @property
    def package(self) -> Path | None:
        """The outermost package folder that the file belongs to, None for a file of its own."""
        folder = self.file.parent
        if not (folder / INIT).is_file():
            return None
        while (folder.parent / INIT).is_file():
            folder = folder.parent
        return folder

    def covers(self, file: str | Path) -> bool:
        """Return whether `file` is a part of the plug-in: the file itself, or any file of its package."""
        other = Path(file).resolve()
        return other == self.file or (self.package is not None and self.package in other.parents)

    def sha256(self) -> str:
        """Return the hash of the file; of a package, of the names and contents of all its Python files."""
        if self.package is None:
            return hashlib.sha256(self.file.read_bytes()).hexdigest()
        content = hashlib.sha256()
        for file in _python_files(self.package):
            data = file.read_bytes()
            content.update(f"{file.relative_to(self.package).as_posix()}\0{len(data)}\0".encode())
            content.update(data)
        return content.hexdigest()


def locate(named: str | Path) -> Location:
    """Return the location of a file, a package folder or an importable module.

    UserError if there is none. Files are not run; of a dotted module, Python imports the packages above it.
    """
    text = str(named)
    if not text:
        raise UserError("no file or module is named")
    if text.endswith(".py") or os.sep in text or "/" in text or Path(text).exists():
        return _locate_path(Path(text))
    if not all(part.isidentifier() for part in text.split(".")):
        raise UserError("is neither a file nor the name of a module")
    return _locate_module(text)


def _locate_path(path: Path) -> Location:
    if not path.exists():
        raise UserError("does not exist")
    file = path.resolve()
    if file.is_dir():
        file = file / INIT
        if not file.is_file():
            raise UserError(f"is a folder without {INIT}: name one of its files, or add an empty {INIT}")
    if file.suffix != ".py":
        raise UserError("is not a Python file (NAME.py), package folder or module")
    return Location(_dotted_name(file), file)


def _dotted_name(file: Path) -> str:
    parts = [] if file.name == INIT else [file.stem]
    folder = file.parent
    while (folder / INIT).is_file():
        parts.append(folder.name)
        folder = folder.parent
    return ".".join(reversed(parts))


def _locate_module(name: str) -> Location:
    file = _file_of_module(name)
    if file is None and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # as `python -m` would find it; last, so that it hides nothing installed
        file = _file_of_module(name)
    if file is None:
        raise UserError("is neither a file nor a module that can be imported; write ./NAME.py, a folder or a module")
    if file.suffix != ".py":
        raise UserError(f"is not written in Python: it lies in {file}")
    return Location(name, file.resolve())


def _file_of_module(name: str) -> Path | None:
    if name in sys.modules:
        origin = getattr(sys.modules[name], "__file__", None)
        return None if origin is None else Path(origin)
    importlib.invalidate_caches()
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            return None
        raise UserError(f"cannot be imported ({first_line(error)})") from error
    except (Exception, SystemExit) as error:  # whatever the packages above it raise
        raise UserError(f"cannot be imported ({type(error).__name__}: {first_line(error)})") from error
    return None if spec is None or spec.origin is None or not spec.has_location else Path(spec.origin)


def _python_files(package: Path) -> Iterator[Path]:
    """Yield the Python files of a package and the packages below it, in a fixed order."""
    yield from sorted(package.glob("*.py"))
    for folder in sorted(path.parent for path in package.glob(f"*/{INIT}")):
        yield from _python_files(folder)
