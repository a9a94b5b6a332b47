"""Who may import whom: five floors, no sideways arrows but the declared ones, no method named outside its file."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from repa_eval.train.methods.base import METHODS

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("repa_eval", "probes", "reports", "train")

# longest prefix wins; modules of one entry may import each other
FLOORS = {
    "repa_eval": 0,
    "repa_eval.errors": 0,
    "repa_eval.registry": 0,
    "repa_eval.config": 0,
    "repa_eval.results": 0,
    "repa_eval.hashing": 1,
    "repa_eval.seeding": 1,
    "repa_eval.resampling": 1,
    "repa_eval.shares": 1,
    "repa_eval.hooks": 1,
    "repa_eval.cache": 1,
    "repa_eval.interpolant": 1,
    "repa_eval.metrics": 1,
    "repa_eval.models.layers": 1,
    "repa_eval.models": 2,
    "repa_eval.teachers": 2,
    "repa_eval.extractors": 2,
    "repa_eval.data": 2,
    "repa_eval.sampling": 2,
    "repa_eval.samples": 2,
    "repa_eval.bank": 2,
    "repa_eval.bank_file": 2,
    "repa_eval.features": 2,
    "repa_eval.checkpoints": 2,
    "repa_eval.align": 3,
    "repa_eval.fidelity": 3,
    "repa_eval.faithfulness": 3,
    "repa_eval.spatial": 3,
    "repa_eval.pictures": 3,
    "repa_eval.probes": 3,
    "repa_eval.train": 3,
    "repa_eval.reports": 3,
    "repa_eval.commandline": 4,
    "repa_eval.measure": 4,
    "repa_eval.monitors": 4,
    "repa_eval.quality": 4,
    "repa_eval.merging": 4,
    "repa_eval.subject": 4,
    "repa_eval.cli": 4,
    "repa_eval.commands": 4,
    "repa_eval.train.cli": 4,
}
# Floor 2 knows of its neighbours only this: networks live in models/, images come from data/, and whoever wraps a
# network (a teacher, a judge, a checkpoint) or feeds it (features, samplers) has to name it.
SIDEWAYS = {
    ("repa_eval.teachers", "repa_eval.models"),
    ("repa_eval.teachers", "repa_eval.data"),
    ("repa_eval.teachers", "repa_eval.checkpoints"),  # a teacher may be a file
    ("repa_eval.extractors", "repa_eval.models"),
    ("repa_eval.extractors", "repa_eval.data"),
    ("repa_eval.checkpoints", "repa_eval.models"),
    ("repa_eval.features", "repa_eval.data"),
    ("repa_eval.features", "repa_eval.teachers"),
    ("repa_eval.sampling", "repa_eval.data"),
    ("repa_eval.sampling", "repa_eval.models"),
    ("repa_eval.sampling", "repa_eval.bank"),
    ("repa_eval.bank_file", "repa_eval.bank"),
    ("repa_eval.extractors", "repa_eval.teachers"),
}
# Reports read a table and nothing else, so that a report needs no GPU and no torch.
ONLY_FLOOR_0 = ("repa_eval.reports",)


def files() -> list[Path]:
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    dotted = ".".join(part for part in parts if part != "__init__")
    return dotted if parts[0] == "repa_eval" else f"repa_eval.{dotted}"


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "repa_eval"}


def unit_of(module: str) -> str:
    return max((unit for unit in FLOORS if module == unit or module.startswith(f"{unit}.")), key=len)


def arrows() -> set[tuple[str, str, str, str]]:
    result = set()
    for path in files():
        module = module_of(path)
        for target in imports_of(path):
            result.add((module, unit_of(module), target, unit_of(target)))
    return result


def test_every_module_has_a_floor() -> None:
    loose = [module_of(path) for path in files() if unit_of(module_of(path)) == "repa_eval"]
    assert loose == ["repa_eval"]


def test_no_arrow_points_up_or_sideways() -> None:
    wrong = []
    for module, unit, target, target_unit in arrows():
        level, target_level = FLOORS[unit], FLOORS[target_unit]
        same = unit == target_unit or level == target_level in (0, 1, 4)
        if target_level > level or (target_level == level and not same and (unit, target_unit) not in SIDEWAYS):
            wrong.append(f"{module} imports {target}")
    assert wrong == []


def test_declared_sideways_arrows_exist() -> None:
    drawn = {(unit, target_unit) for _, unit, _, target_unit in arrows()}
    assert drawn >= SIDEWAYS


def test_reports_see_floor_0_only() -> None:
    wrong = [
        f"{module} imports {target}"
        for module, unit, target, target_unit in arrows()
        if unit in ONLY_FLOOR_0 and target_unit not in ONLY_FLOOR_0 and FLOORS[target_unit] > 0
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", ["repa_eval", "probes", "reports", "train"])
def test_init_files_export_nothing(folder: str) -> None:
    for path in (ROOT / folder).rglob("__init__.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        names = {node.name for node in body if isinstance(node, ast.FunctionDef)}
        # repa_eval.checkpoints.load is a name that scripts rely on
        allowed = {"load"} if path.parent.name == "checkpoints" else set()
        assert names <= allowed, path


@pytest.mark.parametrize("path", ["train/loop.py", "train/cli.py", "repa_eval/models"])
def test_no_method_is_named(path: str) -> None:
    place = ROOT / path
    for file in [place] if place.is_file() else sorted(place.glob("*.py")):
        strings = {
            node.value
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert strings.isdisjoint(METHODS.names()), file


def test_methods_are_final() -> None:
    classes = [cls for _, cls in METHODS.items()]
    assert not [(a, b) for a in classes for b in classes if a is not b and issubclass(a, b)]
