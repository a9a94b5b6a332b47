"""DINOv2 as REPA uses it: a file under the release's names, the loader, the preprocessing, the position table."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from golden_runners import Arrays, Case, runner
from golden_runners.fill import fill_values
from repa_eval.interfaces.teacher import load_teacher

OURS = {"dinov2_vits14": "dinov2-vit-s", "dinov2_vits14_reg": "dinov2reg-vit-s"}


@runner("encoders", "teacher")
def teacher(case: Case, arrays: Arrays) -> Arrays:
    config = case["config"]
    release = fill_values({name: torch.empty(shape) for name, shape in case["state_dict"].items()})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "release.pth"
        torch.save(release, path)
        network = load_teacher(OURS[config["model"]], path)
    with torch.no_grad():
        tokens = network(torch.from_numpy(arrays["image"]))
    assert tokens.cls is not None
    stride = config["patch_token_stride"]
    return {"patch_tokens": tokens.patches[:, ::stride].numpy(), "cls_token": tokens.cls.numpy()}
