"""What an installation holds: every package, every data file; a bare clone works too."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def lines(value: str) -> list[str]:
    return [line.strip() for line in value.strip().splitlines()]


def test_packages_are_the_folders() -> None:
    found = set()
    for top in ("repa_eval", "probes", "reports", "train"):
        for file in (ROOT / top).rglob("__init__.py"):
            parts = file.parent.relative_to(ROOT).parts
            found.add(".".join(parts if top == "repa_eval" else ("repa_eval", *parts)))
    assert set(lines(setup_cfg()["options"]["packages"])) == found


def test_package_data_covers_every_other_file() -> None:
    data = {key: lines(value.replace(",", "\n")) for key, value in setup_cfg()["options.package_data"].items()}
    folders = {"repa_eval": ROOT / "repa_eval"}
    folders |= {f"repa_eval.{name}": ROOT / name for name in ("reports", "train")}
    covered = {file for key, globs in data.items() for glob in globs for file in folders[key].glob(glob)}
    for top in ("repa_eval", "probes", "reports", "train"):
        for file in (ROOT / top).rglob("*"):
            if file.is_file() and file.suffix != ".py" and "__pycache__" not in file.parts:
                assert file in covered, f"{file.relative_to(ROOT)} would be missing from the wheel"


def test_torch_has_no_upper_bound() -> None:
    for requirement in lines(setup_cfg()["options"]["install_requires"]):
        assert "<" not in requirement, requirement
        assert "==" not in requirement, requirement


def test_every_import_is_required() -> None:
    known = {"sklearn": "scikit-learn", "yaml": "PyYAML", "PIL": "pillow", "torch_fidelity": "torch-fidelity"}
    known |= {"jinja2": "Jinja2", "markupsafe": "Jinja2", "pandas": "seaborn"}
    config = setup_cfg()
    listed = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    required = {re.split(r"[<>=\[]", line)[0] for text in listed for line in lines(text)}
    for top in ("repa_eval", "probes", "reports", "train"):
        for file in (ROOT / top).rglob("*.py"):
            names = re.findall(r"^\s*(?:from|import) (\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)
            for name in set(names) - set(sys.stdlib_module_names) - {"repa_eval"}:
                assert known.get(name, name) in required, f"{file}: {name}"


def test_a_bare_clone_works(tmp_path: Path) -> None:
    """Standing in another project whose root holds a train.py, our folders are found, not theirs."""
    (tmp_path / "train.py").write_text("raise SystemExit('the wrong train')", encoding="utf-8")
    code = "import repa_eval.train.recipe, repa_eval.probes.knn, repa_eval.reports.numbers.frames; print('fine')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "fine"
