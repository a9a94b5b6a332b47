"""Small recipes, runs and command lines that several test files share."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repa_eval.features.model_input import ModelInput
from repa_eval.interfaces.architecture import find_preset
from repa_eval.interfaces.image_source import ImageSource
from repa_eval.interfaces.images import Images, load_data
from repa_eval.interfaces.method import METHODS, Batch
from repa_eval.interfaces.sampler import SamplerSettings
from repa_eval.interfaces.teacher import Teacher, load_teacher
from repa_eval.train import batches, loop
from repa_eval.train.recipe import Recipe, builtin_recipes, read_recipe, resolve

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
# the whole contract, as a user would write it beside their own project: the example of the docs
DOCS = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
MY_LOSS = DOCS.partition("```python\n")[2].partition("```")[0]
# whatever of these an architecture or a method has is made this small
SMALL = {
    "depth": 2, "hidden_size": 32, "num_heads": 2, "projector_dim": 32, "stem_size": 8, "encoder_depth": 1,
    "student_layers": [1, 2], "l2r_depth": 1, "stage1_steps": 2,
}  # fmt: skip


def sampling(**given: Any) -> SamplerSettings:
    """Settings of a sampler, its own options written among the common ones."""
    common = {field.name for field in fields(SamplerSettings)}
    own = {name: value for name, value in given.items() if name not in common}
    return SamplerSettings(**{name: value for name, value in given.items() if name in common}, options=own)


def recipe_of(method: str) -> str:
    """The first shipped recipe of a method for the embedded data."""
    embedded = (name for name in builtin_recipes() if name.startswith("digits") and "random" not in name)
    return next(name for name in embedded if read_recipe(name)["method"] == method)


def tiny(method: str = "vanilla", **overrides: Any) -> Recipe:
    """The method's own recipe on the embedded digits, so small that a step takes milliseconds."""
    tree = read_recipe(recipe_of(method))
    known = {field.name for part in (METHODS.get(method)(), find_preset(tree["model"])[1]) for field in fields(part)}
    small = {key: value for key, value in SMALL.items() if key in known}
    if "base" in known:
        small["base"] = tiny_base()
    # the 240 images of `val` are made faster than the 12,000 of `train`
    quick = {"split": "val", "batch_size": 8, "max_steps": 6, "checkpoint_every": 3, "log_every": 1, "warmup_steps": 2}
    return resolve(tree, {**small, **quick, "eval_every": 0, "final_samples": 0, **overrides})


@functools.cache
def tiny_base() -> str:
    """A checkpoint that soft tokens can be put into, a few steps old; made once per session."""
    folder = Path(tempfile.mkdtemp(prefix="repa-eval-base-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return str(run(tiny("t2i", max_steps=30, learning_rate=3e-3, batch_size=32), folder / "base"))


def run(recipe: Recipe, out: Path, **more: Any) -> Path:
    """Train on the CPU, silently; the last checkpoint."""
    return loop.train(recipe, out, **{"device": "cpu", "progress": False, **more})


def steps_of(recipe: Recipe) -> tuple[Recipe, loop.Objective, Any, list[Teacher]]:
    """What the trainer builds before its first step."""
    images = load_data(recipe.settings.data, recipe.settings.split)
    teachers = [load_teacher(name) for name in recipe.method.teachers()]
    resolved, objective = loop.build(recipe, images, teachers)
    return resolved, objective, images, teachers


def batches_of(
    recipe: Recipe,
    images: ImageSource,
    teachers: Sequence[Teacher],
    *,
    step: int = 0,
    share: range | None = None,
    reads: ModelInput = batches.IMAGES,
) -> list[Batch]:
    """The batches of one step, as the trainer makes them: one per part of gradient accumulation."""
    share = share or range(recipe.settings.batch_size)
    fetched = next(iter(batches.loader(images, recipe, step, share, reads=reads)))
    return list(batches.parts(fetched, recipe, step, share, teachers, CPU, reads=reads))


def wake(module: torch.nn.Module, *, seed: int = 0, scale: float = 0.05) -> None:
    """Add noise to every parameter: a fresh SiT outputs 0 because of its gates, and so shows nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


@functools.cache
def digits(split: str) -> Images:
    """A split of the embedded data, made once per session."""
    return load_data("digits", split)


def save_small_data(path: Path, *, count: int = 64) -> str:
    """Write a few digits as npz; the name under which recipes find it. Reading it takes no time."""
    images = digits("val").head(count)
    np.savez(path, arr_0=images.images.transpose(0, 2, 3, 1), arr_1=images.labels)
    return f"folder:{path}"


def files_of(folder: Path) -> dict[str, bytes]:
    """The contents of a folder by relative path, without locks and other hidden files."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(path): (folder / path).read_bytes() for path in sorted(found) if path.name[0] != "."}


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def launch(module: str, *words: str | Path, cwd: Path, **options: Any) -> subprocess.Popen[str]:
    """Start `python -m module words...` elsewhere than in the checkout. options: of Popen."""
    command = [sys.executable, "-m", module, *map(str, words)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=cwd, env=environment(), **pipes, **options)


def torchrun(count: int, *words: str | Path, cwd: Path | None = None) -> str:
    """Run `repa-eval words...` in `count` processes to its good end; what it printed."""
    starter = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m", "repa_eval.cli"]
    command = [sys.executable, *starter, *map(str, words)]
    done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def finish(process: subprocess.Popen[str], *, timeout: float = 120) -> tuple[int, str, str]:
    """Wait; exit code, stdout, stderr."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, out, err


def equal_trees(a: Any, b: Any) -> bool:
    """Whether two nests of dicts, lists, tensors and plain values are equal bit for bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(equal_trees(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal_trees, a, b))
    return bool(a == b)
