"""DINOv2 as REPA uses it: a file under the release's names, the loader, the preprocessing, the position table."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import torch

from golden_runners import Arrays, Case, runner
from golden_runners.fill import fill_values
from repa_eval.interfaces.teacher import load_teacher


def name_of(release: str) -> str:
    """Return our name of a teacher: dinov2_vitb14_reg is dinov2reg-vit-b."""
    match = re.fullmatch(r"dinov2_vit([sblg])14(_reg)?", release)
    assert match is not None, f"{release} is not a name of DINOv2's release"
    return f"dinov2{'reg' if match[2] else ''}-vit-{match[1]}"


@runner("encoders", "teacher")
def teacher(case: Case, arrays: Arrays) -> Arrays:
    config = case["config"]
    release = fill_values({name: torch.empty(shape) for name, shape in case["state_dict"].items()})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "release.pth"
        torch.save(release, path)
        network = load_teacher(name_of(config["model"]), path)
    with torch.no_grad():
        tokens = network(torch.from_numpy(arrays["image"]))
    assert tokens.cls is not None
    stride = config["patch_token_stride"]
    return {"patch_tokens": tokens.patches[:, ::stride].numpy(), "cls_token": tokens.cls.numpy()}
