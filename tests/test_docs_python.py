"""docs/python.md: its blocks run as they stand, in their order."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers import run, tiny
from repa_eval import results

PAGE = Path(__file__).resolve().parent.parent / "docs" / "python.md"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = run(tiny("repa"), tmp_path / "run")
    target = tmp_path / "runs" / "digits-repa" / "checkpoints" / "0001500.pt"
    target.parent.mkdir(parents=True)
    shutil.copy(file, target)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 5
    text = "\n".join(blocks).replace("layers=[2, 3]", "layers=[1, 2]").replace("layers=[3]", "layers=[2]")
    space: dict[str, Any] = {}
    exec(compile(text, str(PAGE), "exec"), space)
    assert [(row.layer, row.note) for row in space["rows"]] == [
        (1, "blocks.3"), (1, "blocks.3"), (2, "blocks.11"), (2, "blocks.11"),
    ]  # fmt: skip
    table = results.read(here / "runs" / "mine")
    assert {(row.run, row.step, row.metric) for row in table} == {
        ("mine", step, metric) for step in (100, 200) for metric in ("cknna", "cka")
    }
    assert {row.protocol for row in table} <= set(results.read_protocols(here / "runs" / "mine"))
    assert "cknna 1 0.1 " in capsys.readouterr().out
