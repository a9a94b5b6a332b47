"""README's first section as typed: an official checkpoint, real photographs and a VAE, all made on the spot."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from inception_weights import bare_inception, fill_inception
from PIL import Image
from sklearn.datasets import load_sample_images

from helpers import ROOT, wake
from repa_eval import results
from repa_eval.cli import main
from repa_eval.models.sit import SiT, SiTConfig

TEXT = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Your checkpoint")[2]
LINES = re.sub(r" *\\\n +", " ", TEXT.partition("```sh\n")[2].partition("```")[0]).splitlines()
COMMANDS = [line for line in LINES if line.startswith("repa-eval")]
STEPS = (50_000, 100_000)
# what the machine of a user has and this one has not: fewer samples and blocks, weights from files
FEWER: dict[str, list[str]] = {
    "align": ["--teacher-weights", "dinov2_vits14_pretrain.pth", "--timesteps", "0.1"],
    "probe": ["--timesteps", "0.1", "--probes", "knn", "--teacher-weights", "dinov2_vits14_pretrain.pth"],
    "sample": ["--num", "4", "--num-steps", "2", "--quiet"],
    "fid": ["--extractor-weights", "inception.pth", "--metrics", "fid"],
    "sweep": [
        *("--teacher-weights", "dinov2_vits14_pretrain.pth", "--extractor-weights", "inception.pth", "--quiet"),
        *("--timesteps", "0.1", "--layers", "2", "--num-samples", "4", "--num-steps", "2"),
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands name: checkpoints of REPA's trainer, photographs of any size in class folders, a VAE."""
    place = tmp_path_factory.mktemp("first")
    rng = np.random.default_rng(0)
    for label, picture in zip(("china", "flower"), load_sample_images().images, strict=True):
        (place / "photos" / label).mkdir(parents=True)
        for index in range(6):
            top, left = (int(rng.integers(0, side - 300)) for side in picture.shape[:2])
            piece = Image.fromarray(picture[top : top + 280 + index, left : left + 290])
            piece.save(place / "photos" / label / f"{index}.{('png', 'jpg')[index % 2]}")
    args: dict[str, Any] = {
        "model": "SiT-digits/2",
        "enc_type": "dinov2-vit-s",
        "encoder_depth": 4,
        "path_type": "linear",
    }
    args |= {"proj_coeff": 0.5, "prediction": "v", "weighting": "uniform", "num_classes": 1000, "cfg_prob": 0.1}
    checkpoints = place / "exps" / "b2" / "checkpoints"
    checkpoints.mkdir(parents=True)
    for step in STEPS:
        sizes: dict[str, Any] = {"depth": 6, "hidden_size": 64, "num_heads": 4, "patch_size": 2}
        network = SiT(SiTConfig(**sizes, in_channels=4, input_size=32, num_classes=1000, z_dims=(384,)))
        wake(network, seed=step)
        state = network.state_dict()
        content = {"model": state, "ema": state, "opt": {"state": {}, "param_groups": []}, "steps": step}
        torch.save(content | {"args": argparse.Namespace(**args)}, checkpoints / f"{step:07d}.pt")
    torch.manual_seed(0)
    diffusers.AutoencoderKL(
        block_out_channels=(4,) * 4, down_block_types=("DownEncoderBlock2D",) * 4, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4,
    ).save_pretrained(place / "VAE")  # fmt: skip
    teacher = timm.create_model("vit_small_patch14_dinov2", pretrained=False, img_size=518)
    torch.save(teacher.state_dict(), place / "dinov2_vits14_pretrain.pth")
    inception = bare_inception()
    fill_inception(inception)
    torch.save(inception.state_dict(), place / "inception.pth")
    return place


def test_the_first_section_works_as_typed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    names = [command.split()[1] for command in COMMANDS]
    assert names == ["inspect", "align", "probe", "sample", "fid", "sweep", "report"]
    shown = {}
    for name, command in zip(names, COMMANDS, strict=True):
        words = [{"VIRTUAL_imagenet256_labeled.npz": "photos"}.get(word, word) for word in shlex.split(command)[1:]]
        if name == "fid":
            words += ["--resize", "256"]
        done = CliRunner().invoke(main, [*words, *FEWER.get(name, [])])
        assert done.exit_code == 0, f"{command}\n{done.output}"
        shown[name] = done.output
    assert re.search(r"^systems +REPA", shown["inspect"], flags=re.MULTILINE)
    assert "cknna with dinov2-vit-s, n=12" in shown["align"]
    assert (folder / "map.png").stat().st_size > 1000
    rows = [row for row in results.read(folder / "measured" / "b2" / "results.jsonl") if row.value is not None]
    for metric in ("cknna", "cka", "fid"):
        assert {row.step for row in rows if row.metric == metric} == set(STEPS), metric
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert all(word in page for word in ("<svg", "cknna", "fid", "dinov2-vit-s"))
