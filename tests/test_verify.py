"""`repa-eval verify`: a whole run has no fault; every damage is one line and exit code 1."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from helpers import run, tiny
from repa_eval import results
from repa_eval.cli import main
from repa_eval.evaluation.tiles import side_by_side
from repa_eval.results import make_row


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two checkpoints with a measured row, its record, and a picture."""
    import numpy as np

    folder = tmp_path_factory.mktemp("whole") / "mine"
    run(tiny("vanilla"), folder)
    results.append(folder, [make_row(metric="cka", value=0.5, run="mine", step=6, protocol={"teacher": "digits-vit"})])
    (folder / "media").mkdir(exist_ok=True)
    (folder / "media" / "samples-0000006.png").write_bytes(side_by_side(np.zeros((2, 1, 8, 8), np.uint8)))
    (folder / "media" / "pca-0000006.json").write_text(json.dumps({"rows": ["a"], "columns": 1, "tile": 8}))
    return folder


@pytest.fixture
def mine(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "mine"))


def verify(*words: object) -> Result:
    return CliRunner().invoke(main, ["verify", *map(str, words)])


def test_a_whole_run_has_no_fault(mine: Path) -> None:
    done = verify(mine)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{mine}: 2 checkpoints, ")
    assert done.stdout.endswith("2 media, no fault\n")
    assert json.loads(verify(mine, "--json").stdout)["faults"] == []


def flip(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 8
    path.write_bytes(data)


def torn(path: Path) -> None:
    """Append the beginning of a line."""
    path.write_bytes(path.read_bytes() + b'{"run"')


def renamed(folder: Path) -> None:
    """Give a checkpoint the name of another step."""
    shutil.copy(folder / "checkpoints" / "0000003.pt", folder / "checkpoints" / "0000004.pt")


def replaced(name: str, old: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new, 1))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda folder: flip(folder / "checkpoints" / "0000003.pt"), "0000003.pt"),
        (lambda folder: (folder / "checkpoints" / "0000006.pt").write_bytes(b""), "0000006.pt"),
        (renamed, "saved at step 3"),
        (replaced("results.jsonl", '"step": 6', '"step": "6"'), "line 1: step '6' is not a whole number"),
        (lambda folder: torn(folder / "log.jsonl"), "log.jsonl: the last line is incomplete"),
        (replaced("protocols.json", "digits-vit", "dinov2-vit-b"), "so it was changed"),
        (lambda folder: (folder / "protocols.json").write_text("{}"), "is missing, which 1 rows name"),
        (lambda folder: (folder / "protocols.json").write_text("{"), "protocols.json is damaged"),
        (lambda folder: (folder / "run.json").write_text(""), "run.json is damaged"),
        (replaced("run.json", '"done"', '"perhaps"'), "its status is none of"),
        (lambda folder: (folder / "run.json").unlink(), "run.json is missing"),
        (lambda folder: (folder / "recipe.yaml").write_text("a: ["), "recipe.yaml is damaged"),
        (lambda folder: flip(folder / "media" / "samples-0000006.png"), "samples-0000006.png is damaged"),
        (lambda folder: (folder / "media" / "pca-0000006.json").write_text("[" * 5000), "pca-0000006.json is damaged"),
    ],
)  # fmt: skip
def test_every_damage_is_a_line(mine: Path, damage: Callable[[Path], object], text: str) -> None:
    damage(mine)
    done = verify(mine)
    assert (done.exit_code, done.stderr) == (1, "")
    [line] = done.stdout.splitlines()
    assert text in line
    assert len(json.loads(verify(mine, "--json").stdout)["faults"]) == 1


def test_several_faults_are_several_lines(mine: Path) -> None:
    flip(mine / "checkpoints" / "0000003.pt")
    with open(mine / "results.jsonl", "ab") as table:
        table.write(b'{"metric": 5}\n[1]\n{"metric": "cka", "value": NaN}\n')
    assert len(verify(mine).stdout.splitlines()) == 4


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    done = verify(tmp_path)
    assert done.exit_code == 2
    assert "is no run folder" in done.stderr
