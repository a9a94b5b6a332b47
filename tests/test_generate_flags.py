"""`repa-eval sample` with the flags of the official generate.py and sample_ddp.py, as they are typed there."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from helpers import wake
from repa_eval.cli import main
from repa_eval.interfaces.architecture import find_preset

OFFICIAL = "repa/0400000.pt"
# as README.md of REPA types it, but for sizes, steps and the number of images
REPA = (
    "--model SiT-digits/2 --num-fid-samples 3 --path-type=linear --encoder-depth 2 --projector-embed-dims=6 "
    "--per-proc-batch-size=2 --mode=sde --num-steps=3 --cfg-scale=1.8 --guidance-high=0.7 --num-classes 10 "
    "--resolution 8 --fused-attn --no-qk-norm --legacy --no-tf32 --global-seed 3 --no-heun"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a trainer: its arguments say the aligned block."""
    folder = tmp_path_factory.mktemp("official")
    architecture, config = find_preset("SiT-digits/2")
    sizes = {"z_dims": (6,), "in_channels": 1, "input_size": 8, "num_classes": 10}
    network = architecture.build(dataclasses.replace(config, **sizes))
    wake(network, scale=0.1)
    args = argparse.Namespace(model="SiT-digits/2", enc_type="digits-vit", encoder_depth=2, proj_coeff=0.5)
    state = network.state_dict()
    (folder / "repa").mkdir()
    torch.save({"model": state, "ema": state, "args": args, "steps": 400_000}, folder / OFFICIAL)
    torch.save(state, folder / "bare.pt")
    return folder


def sample(folder: Path, ckpt: str, out: Path, *words: str) -> Result:
    given = ["sample", "--ckpt", str(folder / ckpt), "--sample-dir", str(out), "--device", "cpu", *words]
    return CliRunner().invoke(main, given)


def test_the_published_command_line_is_the_same_as_ours(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "0000001.pt").write_text("README's own --sample-dir is a folder of checkpoints")
    done = sample(folder, OFFICIAL, tmp_path / "theirs", *REPA.split(), "--json")
    assert done.exit_code == 0, done.output
    assert done.stderr.strip() == "note: --fused-attn, --legacy: no effect on what this file generates"
    ours = ["sample", "--ckpt", str(folder / OFFICIAL), "--out", str(tmp_path / "ours.npz"), "--num", "3", "--mode",
            "sde", "--num-steps", "3", "--cfg-scale", "1.8", "--guidance-high", "0.7", "--batch-size", "2", "--seed",
            "3", "--device", "cpu", "--quiet"]  # fmt: skip
    assert CliRunner().invoke(main, ours).exit_code == 0
    made = json.loads(done.stdout)
    made_in = tmp_path / "theirs" / "SiT-digits-2-0400000-size-8-cfg-1.8-seed-3-sde"
    assert (made["samples"], made["record"]["sampler_seed"]) == (str(made_in), 3)
    theirs = [np.asarray(Image.open(file)) for file in sorted(made_in.rglob("*.png"))]
    assert np.array_equal(np.stack(theirs), np.load(tmp_path / "ours.npz")["arr_0"][..., 0])


CONTRADICTIONS: dict[str, str] = {
    "--model SiT-XL/2": r"--model SiT-XL/2: .*0400000\.pt holds SiT-digits/2; leave --model out",
    "--encoder-depth 8": r"--encoder-depth 8: .*0400000\.pt says 2; leave --encoder-depth out",
    "--projector-embed-dims 768,1024": r"--projector-embed-dims 768,1024: .* says 6; leave --projector-embed-dims out",
    "--num-classes 1000": r"--num-classes 1000: .* says 10; leave --num-classes out",
    "--resolution 256": r"--resolution 256: .* says 8; leave --resolution out",
    "--qk-norm": r"--qk-norm True: .* says False; leave --qk-norm out",
    "--seed 1 --global-seed 2": r"--global-seed 2: --seed says 1",
    "--batch-size 4 --per-proc-batch-size 8": r"--per-proc-batch-size 8: --batch-size says 4",
    "--out elsewhere": "--sample-dir: --out says where the images go; leave one of them out",
    "--model SiT-XXL/2": "SiT-XXL/2",
}


@pytest.mark.parametrize("words", CONTRADICTIONS)
def test_a_flag_that_contradicts_the_file_is_refused_in_one_line(words: str, folder: Path, tmp_path: Path) -> None:
    done = sample(folder, OFFICIAL, tmp_path / "out", *words.split(), "--num", "2", "--num-steps", "2", "--quiet")
    assert done.exit_code == 2, done.output
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert re.search(CONTRADICTIONS[words], line), line
    assert not (tmp_path / "out").exists()


def test_what_a_bare_file_does_not_say_is_noted_and_the_folder_is_needed(folder: Path, tmp_path: Path) -> None:
    words = ["--encoder-depth", "8", "--cls", "768", "--num-sampling-steps", "2", "--image-size", "8", "--num", "1"]
    done = sample(folder, "bare.pt", tmp_path / "out", *words)
    assert done.exit_code == 0, done.output
    assert "note: --encoder-depth, --cls: no effect" in done.stderr
    done = CliRunner().invoke(main, ["sample", "--ckpt", str(folder / "bare.pt")])
    assert (done.exit_code, done.stderr) == (2, "error: name where the images go: --out DIR or --out FILE.npz\n")


def test_every_official_flag_is_known() -> None:
    """The options of the official scripts: REPA's and REG's generate.py, SiT's and DiT's sample_ddp.py."""
    from repa_eval.commands.sample import command

    known: set[str] = {word for parameter in command.params for word in (*parameter.opts, *parameter.secondary_opts)}
    repa = (
        "--global-seed --tf32 --no-tf32 --ckpt --sample-dir --model --num-classes --encoder-depth --resolution "
        "--fused-attn --no-fused-attn --qk-norm --no-qk-norm --vae --per-proc-batch-size --num-fid-samples --mode "
        "--cfg-scale --projector-embed-dims --path-type --num-steps --heun --no-heun --guidance-low --guidance-high "
        "--legacy --no-legacy --cls-cfg-scale --cls"
    )
    ddp = "--image-size --num-sampling-steps --sampling-method --atol --rtol --diffusion-form --diffusion-norm"
    wanted: Any = {*repa.split(), *ddp.split()}
    assert wanted - known == set()
