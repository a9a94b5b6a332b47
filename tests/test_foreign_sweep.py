"""`repa-eval sweep` of runs that this project did not train: the official trainers' folders, models of latents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from helpers import files_of, wake
from latent_files import photographs
from official_files import REPA, trainer_file
from repa_eval import results
from repa_eval.cli import main as repa_eval
from repa_eval.models.sit import SiT, SiTConfig
from repa_eval.monitors.shared import foreign

TEACHER = """
import torch
from repa_eval.interfaces.teacher import Teacher, Tokens
from repa_eval.plugins import teacher

class Colours(Teacher):
    def __init__(self, name):
        super().__init__()
        self.name, self.width, self.digest = name, 3, "colours"
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, images):
        patches = torch.nn.functional.avg_pool2d(images.float() / 255, 4).flatten(2).transpose(1, 2)
        return Tokens(patches=patches * self.scale, cls=patches.mean(1))

@teacher("colours")
def colours(name, weights):
    return Colours(name)
"""
IMAGES = 24


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs in class folders, a tiny VAE, a teacher, and the folder of an official trainer with two checkpoints."""
    import diffusers

    place = tmp_path_factory.mktemp("official")
    for index, pixels in enumerate(photographs(IMAGES, 16)):
        file = place / "data" / "ab"[index % 2] / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    torch.manual_seed(0)
    diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, scaling_factor=1.0,
    ).save_pretrained(place / "vae")  # fmt: skip
    (place / "teacher.py").write_text(TEACHER)
    for step, seed in ((100, 1), (200, 2)):
        folder = place / "exps" / "linear-dinov2-b-enc1" / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        trainer_file(folder / f"{step:07d}.pt", network(seed).state_dict(), steps=step, **REPA)
    return place


def network(seed: int) -> SiT:
    sizes = {"depth": 2, "hidden_size": 32, "num_heads": 2, "patch_size": 2, "projector_dim": 16}
    built = SiT(SiTConfig(**sizes, in_channels=4, input_size=8, num_classes=10, z_dims=(3,)))
    wake(built, seed=seed)
    return built


def words(artefacts: Path, out: Path, *more: str) -> list[str]:
    run = artefacts / "exps" / "linear-dinov2-b-enc1"
    given = ["sweep", str(run), "--out", str(out), "--data", str(artefacts / "data"), "--vae", str(artefacts / "vae")]
    given += ["--plugin", str(artefacts / "teacher.py"), "--teacher", "colours", "--set", "num_heads=2"]
    given += ["--reference", str(artefacts / "data"), "--extractor", "pixel_pca", "--num-samples", "12"]
    given += ["--num-steps", "2", "--mode", "sde", "--cfg-scale", "1.5", "--guidance-high", "0.7", "--layers", "1,2"]
    return [*given, "--timesteps", "0.1,0.5", "--batch-size", "8", "--device", "cpu", "--quiet", *more]


def sweep(artefacts: Path, out: Path, *more: str) -> Result:
    return CliRunner().invoke(repa_eval, words(artefacts, out, *more))


def rows_of(done: Result) -> list[dict[str, Any]]:
    assert done.exit_code == 0, done.output
    found: list[dict[str, Any]] = json.loads(done.stdout)["rows"]
    return found


def fails(done: Result, code: int, text: str) -> None:
    assert done.exit_code == code, done.output
    assert done.stderr.count("\n") == 1, done.stderr
    assert text in done.stderr


def test_an_official_run_is_measured_once(artefacts: Path, tmp_path: Path) -> None:
    before = files_of(artefacts / "exps")
    rows = rows_of(sweep(artefacts, tmp_path / "out", "--json"))
    folder = tmp_path / "out" / "linear-dinov2-b-enc1"
    steps = {
        metric: {row["step"] for row in rows if row["metric"] == metric} for metric in {row["metric"] for row in rows}
    }
    assert {"cknna", "cka", "mutual_knn", "probe_accuracy", "knn_accuracy", "fd_pixel_pca"} <= set(steps)
    assert all(found in ({100, 200}, {None}) for found in steps.values())
    assert {(row["run"], row["system"], row["weights"]) for row in rows if row["step"]} == {
        ("linear-dinov2-b-enc1", "REPA", "ema")
    }
    cells = [(row["step"], row["layer"], row["timestep"]) for row in rows if row["metric"] == "cknna"]
    assert sorted(cells) == [(step, layer, t) for step in (100, 200) for layer in (1, 2) for t in (0.1, 0.5)]
    records = results.read_protocols(folder)
    [quality] = [record for record in records.values() if record["kind"] == "sample quality"]
    expected = {"sampler_mode": "sde", "cfg_scale": 1.5, "guidance_interval": [0.0, 0.7], "num_samples": 12}
    assert quality | expected == quality
    assert quality["vae_hash"]
    assert all(
        record["model_input"] == "latents"
        for record in records.values()
        if "layers" not in record and "label" in record
    )
    assert files_of(artefacts / "exps") == before  # nothing is written into the run of somebody else
    media = sorted(path.name for path in (folder / "media").glob("*.png"))
    assert media == [f"{kind}-0000{step}.png" for kind in ("pca", "samples") for step in (100, 200)]
    facts = json.loads((folder / "run.json").read_text())
    assert facts["description"] == "SiT-XL/2, REPA, of another trainer" or "REPA" in facts["description"]
    assert facts["checkpoints"] == str(artefacts / "exps" / "linear-dinov2-b-enc1")
    whole = files_of(folder)
    assert rows_of(sweep(artefacts, tmp_path / "out", "--json")) == []
    assert files_of(folder) == whole
    table = folder / results.TABLE
    lines = table.read_text().splitlines()
    table.write_text("".join(f"{line}\n" for line in lines[:5]))  # as after a kill
    sweep(artefacts, tmp_path / "out")
    assert sorted(table.read_text().splitlines()) == sorted(lines)
