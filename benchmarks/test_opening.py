"""Opening a training file of SiT-XL/2, about 10.8 GB, takes the memory and the time of its averaged weights alone."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from repa_eval.interfaces.architecture import find_preset

CHILD = """
import json, re, sys, time
began = time.process_time()
import torch
from repa_eval import checkpoints
ready = time.process_time()
info = checkpoints.load(sys.argv[1]).info()
status = open("/proc/self/status").read()  # not ru_maxrss, which a child inherits from its parent
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) / 1024**2
print(json.dumps({"info": info, "import": ready - began, "open": time.process_time() - ready, "peak_GiB": peak}))
"""


def training_file(path: Path) -> None:
    """Write {model, ema, opt, args, steps} with real tensors: weights twice, two moments of Adam."""
    from dataclasses import replace

    architecture, config = find_preset("SiT-XL/2")
    with torch.device("meta"):
        shapes = architecture.build(replace(config, z_dims=(768,))).state_dict()
    state = {name: torch.full(tensor.shape, 0.01) for name, tensor in shapes.items()}
    copy = {name: tensor.clone() for name, tensor in state.items()}
    moments = {
        i: {"exp_avg": torch.zeros_like(t), "exp_avg_sq": torch.zeros_like(t)} for i, t in enumerate(state.values())
    }
    args = argparse.Namespace(model="SiT-XL/2", enc_type="dinov2-vit-b", encoder_depth=8, proj_coeff=0.5)
    content = {
        "model": state,
        "ema": copy,
        "opt": {"state": moments, "param_groups": []},
        "args": args,
        "steps": 400_000,
    }
    torch.save(content, path)


def test_a_training_file_of_sit_xl(benchmark: Any, tmp_path: Path) -> None:
    if shutil.disk_usage(tmp_path).free < 14 * 1024**3:
        pytest.fail("this benchmark writes a file of 10.8 GB and needs 14 GB of disk")
    file = tmp_path / "0400000.pt"
    training_file(file)
    size = file.stat().st_size / 1e9
    try:
        done = benchmark.pedantic(
            lambda: subprocess.run(
                [sys.executable, "-c", CHILD, str(file)], capture_output=True, text=True, check=True
            ),
            rounds=1,
            iterations=1,
        )
    finally:
        file.unlink()
    found = json.loads(done.stdout)
    assert found["info"]["systems"] == ["REPA"]
    benchmark.extra_info.update({key: found[key] for key in ("import", "open", "peak_GiB")})
    print(
        f"\nfile {size:.2f} GB, peak {found['peak_GiB']:.2f} GiB; "
        f"CPU seconds: import {found['import']:.1f}, open {found['open']:.1f}"
    )
