"""The commands of docs/metrics.md for published weights run: on files of the published layout, with small networks."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

from helpers import ROOT, wake
from repa_eval import results
from repa_eval.cli import main
from repa_eval.interfaces import teacher as teachers
from repa_eval.interfaces.teacher import Teacher, Tokens
from repa_eval.models.sit import SiT, SiTConfig

TEXT = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8").partition("With the published weights")[2]
COMMANDS = TEXT.partition("```sh\n")[2].partition("```")[0].splitlines()
# 4x32x32 latents in patches of 2, as published; the width tells the number of heads
SIZES: dict[str, Any] = {"depth": 2, "hidden_size": 384, "num_heads": 6, "in_channels": 4, "input_size": 32}


class GreyLevels(Teacher):
    """Stands for DINOv2-g, whose weights are not here: the grey levels of 16x16 patches."""

    name, width, digest, prefix_tokens = "dinov2-vit-g", 4, "grey", 0

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tokens:
        assert images.shape[1:] == (3, 256, 256)
        cells = nn.functional.adaptive_avg_pool2d(images.float().mean(1, keepdim=True), 32)
        return Tokens(nn.functional.unfold(cells, 2, stride=2).transpose(1, 2) * self.scale)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands name: two bare files of averages, photographs in class folders, a VAE."""
    place = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    for name, learn_sigma in {"SiT-XL-2-256x256": True, "repa-last": False}.items():
        network = SiT(SiTConfig(**SIZES, patch_size=2, num_classes=1000, learn_sigma=learn_sigma))
        wake(network)
        torch.save(network.state_dict(), place / f"{name}.pt")
    pictures = load_sample_images().images  # 427x640 pixels
    rng = np.random.default_rng(0)
    for split, count in {"train": 12, "val": 6}.items():
        for label, picture in enumerate(pictures):
            classes = place / "imagenet" / split / f"n{label:08d}"
            classes.mkdir(parents=True)
            for index in range(count):
                top, left = (int(rng.integers(0, side - 280)) for side in picture.shape[:2])
                piece = Image.fromarray(picture[top : top + 260 + index, left : left + 280])
                piece.save(classes / f"{index}.JPEG", quality=95)
    diffusers.AutoencoderKL(
        block_out_channels=(4,) * 4, down_block_types=("DownEncoderBlock2D",) * 4, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4,
    ).save_pretrained(place / "mse")  # fmt: skip
    return place


def test_there_are_commands() -> None:
    assert [command.split()[1] for command in COMMANDS] == ["align", "align", "probe", "align"]
    assert all(re.search(r"--data imagenet/\w+ .*--resolution 256 --vae mse", command) for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_for_published_weights_runs(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(teachers, "load_teacher", lambda name, weights=None: GreyLevels().freeze())
    words = [{"cuda": "cpu"}.get(word, word) for word in shlex.split(command)[1:]]
    done = CliRunner().invoke(main, [*words, "--json"])
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    rows = [row for row in answer["rows"] if row["layer"] is not None]
    times = len(words[words.index("--timesteps") + 1].split(","))
    assert len(rows) == SIZES["depth"] * times
    assert {row["n"] for row in rows} == {12}
    assert all(np.isfinite(row["value"]) for row in rows)
    protocol = answer["protocols"][rows[0]["protocol"]]
    said = {"vae": "mse", "latent_scale": [0.18215], "latent_shift": [0.0], "posterior": "sampled by (seed, index)"}
    assert protocol | said == protocol
    assert len(results.read(words[words.index("--rows") + 1])) >= len(rows)
