"""The documents' Python blocks run as they stand, in their order, and pass mypy --strict."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from helpers import ROOT, run, tiny
from repa_eval import results

matplotlib.use("agg")
PAGES = ("docs/python.md", "README.md", "docs/metrics.md")


def blocks_of(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = run(tiny("repa"), tmp_path / "run")
    target = tmp_path / "runs" / "digits-repa" / "checkpoints" / "0001500.pt"
    target.parent.mkdir(parents=True)
    shutil.copy(file, target)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def execute(page: str) -> dict[str, Any]:
    space: dict[str, Any] = {}
    exec(compile("\n".join(blocks_of(page)), page, "exec"), space)
    return space


def test_the_page_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(blocks_of("docs/python.md")) >= 10
    space = execute("docs/python.md")
    assert [(row.layer, row.note) for row in space["found"]] == [
        (1, "blocks.3"), (1, "blocks.3"), (2, "blocks.11"), (2, "blocks.11"),
    ]  # fmt: skip
    table = results.read(here / "runs" / "mine")
    assert {(row.run, row.step, row.metric) for row in table} == {
        ("mine", step, metric) for step in (100, 200) for metric in ("cknna", "cka")
    }
    assert {row.protocol for row in table} <= set(results.read_protocols(here / "runs" / "mine"))
    assert space["states"].shape == (2, 2, 50, 32)
    assert len(space["rows"]) == 4
    assert space["axes"].get_title() == "REPA, 1500 steps"
    assert "cknna 1 0.1 " in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES[1:])
def test_the_other_pages_run(here: Path, page: str) -> None:
    assert execute(page)


@pytest.mark.parametrize("page", PAGES)
def test_no_documented_import_is_private(page: str) -> None:
    for block in blocks_of(page):
        for line in re.findall(r"^\s*(?:from|import) .*", block, re.MULTILINE):
            assert not re.search(r"[. ]_", line), line


def test_the_blocks_pass_mypy_strict(tmp_path: Path) -> None:
    """One call for all pages and tests/plugins; the package is laid out as installed, where mypy's cache knows it."""
    tree = ROOT / ".mypy_cache" / "as_installed"
    package = tree / "repa_eval"
    package.mkdir(parents=True, exist_ok=True)
    for child in [*(ROOT / "repa_eval").iterdir(), *(ROOT / top for top in ("probes", "reports", "train"))]:
        link = package / child.name
        if child.name != "__pycache__" and not link.exists():
            link.symlink_to(child)
    files = sorted((ROOT / "tests" / "plugins").glob("*.py"))
    for page in PAGES:
        files.append(tmp_path / f"{Path(page).stem.lower()}_page.py")
        files[-1].write_text("\n".join(blocks_of(page)), encoding="utf-8")
    command = [
        sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--ignore-missing-imports",
        "--config-file", "", "--cache-dir", str(tree / "cache"), *map(str, files),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tree, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
