"""Memory of `align` on a folder of raw images of many sizes, cropped to 64 px when they are fetched.

BENCH_IMAGES=4000 measures fewer than 20,000. The peak is that of a process of its own with all its imports.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COUNT, LIMIT_GB = int(os.environ.get("BENCH_IMAGES", "20000")), 2.0

CHILD = """
import json, re, sys, time
import torch
from torch import nn
import repa_eval
from repa_eval.data import load
from repa_eval.features.capture import Capture
from repa_eval.interfaces.teacher import Teacher, Tokens
from repa_eval.models.sit import SiT, SiTConfig

class Patches(Teacher):
    name, width, digest = "patches", 384, "0" * 12
    def __init__(self):
        super().__init__()
        self.project = nn.Conv2d(3, self.width, 8, 8)
    def forward(self, images):
        return Tokens(self.project(images / 255).flatten(2).mT)

torch.set_num_threads(1)
torch.manual_seed(0)
sizes = {"input_size": 64, "in_channels": 3, "patch_size": 8, "hidden_size": 192, "depth": 6, "num_heads": 3}
model = SiT(SiTConfig(**sizes, num_classes=10)).eval()
for parameter in model.parameters():
    if parameter.requires_grad:
        nn.init.normal_(parameter, std=0.02)
from pathlib import Path
began = time.process_time()
images = load(sys.argv[1], "train", resolution=64)
opened = time.process_time() - began
rows = repa_eval.align(
    model, Patches().eval(), images, timesteps=0.1, num_images=len(images), capture=Capture(cache=Path(sys.argv[2]))
)
status = open("/proc/self/status").read()  # not ru_maxrss, which a child inherits from its parent
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) * 1024 / 1e9
spent = {"open_s": opened, "all_s": time.process_time() - began}
print(json.dumps({"rows": len(rows), "n": rows[0].n, **spent, "peak_GB": peak}))
"""


def write_raw(folder: Path, count: int) -> None:
    """Write JPEGs of 64 to 100 pixels a side, smooth and each another, in ten class folders."""
    rng = np.random.default_rng(0)
    for index in range(count):
        place = folder / f"class{index % 10}"
        place.mkdir(parents=True, exist_ok=True)
        width, height = rng.integers(64, 101, 2)
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        coarse.resize((int(width), int(height)), Image.Resampling.BICUBIC).save(place / f"{index:06d}.jpg")


def test_alignment_on_raw_images_fits_into_memory(benchmark: Any, tmp_path: Path) -> None:
    write_raw(tmp_path / "raw", COUNT)
    words = [sys.executable, "-c", CHILD, str(tmp_path / "raw"), str(tmp_path / "cache")]
    done = benchmark.pedantic(
        lambda: subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True), rounds=1, iterations=1
    )
    found = json.loads(done.stdout)
    assert (found["rows"], found["n"]) == (12, COUNT)
    benchmark.extra_info.update(found)
    print(
        f"\n{COUNT} images: peak {found['peak_GB']:.2f} GB; CPU seconds: opened in {found['open_s']:.2f}, all "
        f"{found['all_s']:.0f}"
    )
    assert found["peak_GB"] < LIMIT_GB
