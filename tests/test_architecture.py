"""Who may import whom: nine floors without exemption, no circle of files or rooms, no method named outside its file."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from repa_eval.interfaces.method import METHODS

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("repa_eval", "probes", "reports", "train")

# Floors, lowest first: what stands on one may import the floors below it, never its neighbours. A folder stands for
# everything in it; a longer name wins. Names are those under `repa_eval`, whose own __init__ is the ground.
FLOORS: dict[int, tuple[str, ...]] = {
    1: ("errors",),
    2: ("config", "plugin_files", "runtime", "weight_files"),
    3: ("registry", "diffusion", "memory_bank", "results"),
    4: ("interfaces",),
    5: ("metrics", "models", "data", "features", "sampling", "console", "reports"),
    6: ("extractors", "checkpoints", "evaluation", "probes", "preparation"),
    7: ("teachers", "monitors"),
    8: ("reparameterisation", "train", "api"),
    9: ("commands", "cli", "train.cli", "align", "plugins"),
}
FLOOR_OF = {unit: floor for floor, units in FLOORS.items() for unit in units}
LOOSE = 7  # modules directly in repa_eval/


def files() -> list[Path]:
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def module_of(path: Path) -> str:
    """Return the dotted name under `repa_eval`: "" for its own __init__."""
    parts = [part for part in path.relative_to(ROOT).with_suffix("").parts if part != "__init__"]
    return ".".join(parts[1:] if parts[0] == "repa_eval" else parts)


MODULES = {module_of(path): path for path in files()}


def imports_of(path: Path) -> Iterator[str]:
    """Yield the modules of ours that a file imports, as names under `repa_eval`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "repa_eval":
                under = name.removeprefix("repa_eval").removeprefix(".")
                yield under if under in MODULES else under.rpartition(".")[0]


ARROWS = {(module, target) for module, path in MODULES.items() for target in imports_of(path)}


def unit_of(module: str) -> str:
    """Return the entry of FLOORS that a module belongs to, "" for the ground."""
    units = [unit for unit in FLOOR_OF if module == unit or module.startswith(f"{unit}.")]
    return max(units, key=len, default="")


def room_of(module: str) -> str:
    """Return the folder of a module; a loose module of repa_eval/ is a room of its own."""
    if MODULES[module].name == "__init__.py":
        return module
    return module.rpartition(".")[0] or module


def circles(arrows: Collection[tuple[str, str]]) -> list[str]:
    """Return the nodes that lead back to themselves."""
    after: dict[str, set[str]] = {}
    for start, end in arrows:
        after.setdefault(start, set()).add(end)

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        stack = [start]
        while stack:
            for node in after.get(stack.pop(), set()) - seen:
                seen.add(node)
                stack.append(node)
        return seen

    return sorted(node for node in after if node in reached(node))


def test_contributing_shows_the_floors() -> None:
    rows = [f"| {floor} | {', '.join(f'`{unit}`' for unit in units)} |" for floor, units in FLOORS.items()]
    table = "\n".join(["| floor | what stands on it |", "|---|---|", *rows])
    assert table in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), table


def test_every_module_has_a_floor() -> None:
    assert [module for module in MODULES if not unit_of(module)] == [""]


def test_no_arrow_points_up_or_sideways() -> None:
    wrong = []
    for module, target in sorted(ARROWS):
        start, end = unit_of(module), unit_of(target)
        if end and start != end and FLOOR_OF[end] >= FLOOR_OF.get(start, 0):
            wrong.append(f"{module} imports {target}")
    assert wrong == []


def test_torch_load_is_called_in_one_file() -> None:
    """Every other file asks weight_files/reading.py, which executes nothing and answers with one-line errors."""
    callers = [module for module, path in MODULES.items() if "torch.load(" in path.read_text(encoding="utf-8")]
    assert callers == ["weight_files.reading"]


def test_safetensors_are_read_in_one_file() -> None:
    readers = ("safe_open", "load_file", "safetensors.torch.load", "SafetensorError")
    names = {
        module
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("safetensors")
        for alias in node.names
        if alias.name in readers
    }
    assert names == {"weight_files.reading"}


def test_files_form_no_circle() -> None:
    assert circles({(module, target) for module, target in ARROWS if module != target}) == []


def test_rooms_form_no_circle() -> None:
    """A folder and the folders in it are different rooms: what they share lies in one that imports neither."""
    rooms = {(room_of(module), room_of(target)) for module, target in ARROWS}
    assert circles({(start, end) for start, end in rooms if start != end and end}) == []


def test_few_modules_lie_loose() -> None:
    loose = [path for path in (ROOT / "repa_eval").glob("*.py") if path.name != "__init__.py"]
    assert len(loose) <= LOOSE


def test_no_module_is_private() -> None:
    assert [module for module in MODULES if any(part.startswith("_") for part in module.split("."))] == []


@pytest.mark.parametrize("path", ["train/loop.py", "train/cli.py", "repa_eval/models"])
def test_no_method_is_named(path: str) -> None:
    place = ROOT / path
    for file in [place] if place.is_file() else sorted(place.rglob("*.py")):
        strings = {
            node.value
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert strings.isdisjoint(METHODS.names()), file


def test_methods_are_final() -> None:
    classes = [cls for _, cls in METHODS.items()]
    assert not [(a, b) for a in classes for b in classes if a is not b and issubclass(a, b)]
