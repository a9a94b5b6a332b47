"""`repa-eval convert` and `inspect`: what goes out as safetensors comes back as the same checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from test_official_checkpoints import batch, small

from helpers import run, tiny
from official_files import DIT, REPA, trainer_file
from repa_eval import checkpoints
from repa_eval.cli import main


def repa_eval(*words: object) -> Result:
    return CliRunner().invoke(main, list(map(str, words)))


def info_of(*words: object) -> dict[str, Any]:
    done = repa_eval("inspect", *words, "--json")
    assert done.exit_code == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def converted(file: Path, folder: Path, *words: object) -> Path:
    done = repa_eval("convert", file, "--to", folder, *words)
    assert (done.exit_code, done.stdout) == (0, f"{folder}/model.safetensors\n"), done.stderr
    return folder


def test_our_own_checkpoint_comes_back(tmp_path: Path) -> None:
    file = run(tiny("repa"), tmp_path / "mine")
    folder = converted(file, tmp_path / "out")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    before, after = info_of(file), info_of(folder)
    assert {key: after[key] for key in before if key not in ("path", "layout")} == {
        key: before[key] for key in before if key not in ("path", "layout")
    }
    assert after["layout"] == "safetensors"
    old, new = (checkpoints.load(path) for path in (file, folder))
    assert new.recipe == old.recipe
    assert all(torch.equal(tensor, old.network.state_dict()[name]) for name, tensor in new.network.state_dict().items())
    assert info_of(folder / "model.safetensors") == {**after, "path": str(folder / "model.safetensors")}


def test_an_official_file_keeps_what_its_arguments_said(tmp_path: Path) -> None:
    state, network = small(z_dims=(24,), projector_dim=16)
    file = trainer_file(tmp_path / "0400000.pt", state, **REPA)
    assert "add --set num_heads=N" in repa_eval("inspect", file).stderr  # SiT-XL/2 of its arguments is no 48-wide model
    folder = converted(file, tmp_path / "out", "--set", "num_heads=4")
    info = info_of(folder)
    assert (info["systems"], info["num_heads"], info["step"]) == (["REPA"], 4, 400_000)
    assert (info["teacher"], info["encoder_depth"]) == ("dinov2-vit-b", 8)
    assert torch.equal(checkpoints.load(folder).model(*batch())[0], network(*batch())[0])
    card = (folder / "README.md").read_text()
    assert "System: REPA" in card
    assert "t=1 noise, v = noise - data" in card


def test_the_convention_comes_back(tmp_path: Path) -> None:
    state, _ = small("DiT-S/2")
    told = converted(trainer_file(tmp_path / "a.pt", state, **DIT), tmp_path / "told", "--set", "num_heads=4")
    assert info_of(told)["systems"] == ["DiT"]
    assert type(checkpoints.load(told).model).__name__ == "NoisePrediction"
    torch.save(state, tmp_path / "b.pt")
    for system, wrapper in {"SiT": "ReversedTime", "DiT": "NoisePrediction"}.items():
        words = ["--set", "num_heads=4", "--set", f"system={system}"]
        folder = converted(tmp_path / "b.pt", tmp_path / system, *words)
        assert type(checkpoints.load(folder).model).__name__ == wrapper


def test_both_conventions_come_back_undecided(tmp_path: Path) -> None:
    state, _ = small("DiT-S/2")
    torch.save(state, tmp_path / "b.pt")
    folder = converted(tmp_path / "b.pt", tmp_path / "out", "--set", "num_heads=4")
    assert info_of(folder)["systems"] == ["SiT", "DiT"]
    assert " or " in info_of(folder)["convention"]


def test_the_weights_that_were_asked_for(tmp_path: Path) -> None:
    file = run(tiny("repa"), tmp_path / "mine")
    folder = converted(file, tmp_path / "online", "--weights", "online")
    saved = torch.load(file, weights_only=True)["model"]
    assert all(torch.equal(tensor, saved[name]) for name, tensor in load_file(folder / "model.safetensors").items())
    assert info_of(folder, "--weights", "online")["weights"] == "online"
    assert "holds the online weights only" in repa_eval("inspect", folder).stderr


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("config.json", b"{", "config.json is damaged"),
        ("model.safetensors", b"short", "is not a readable safetensors file"),
        ("model.safetensors", None, "has a config.json but no model.safetensors"),
    ],
)
def test_a_damaged_folder_is_one_line(tmp_path: Path, name: str, content: bytes | None, text: str) -> None:
    folder = converted(run(tiny("repa"), tmp_path / "mine"), tmp_path / "out")
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    done = repa_eval("inspect", folder)
    assert (done.exit_code, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert text in done.stderr
