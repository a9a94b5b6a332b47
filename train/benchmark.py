"""How fast a recipe trains on this machine, and which part of a step takes the time: `repa-train --benchmark N`."""

from __future__ import annotations

import dataclasses
import itertools
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from repa_eval.console.tables import table
from repa_eval.interfaces.images import load_data
from repa_eval.train import batches, loop, stages, state
from repa_eval.train.given_features import load_teachers
from repa_eval.train.recipe import Recipe

PARTS = ("data", "teacher", "forward", "backward", "optimiser", "average")
WARM = 2  # steps before the clock runs: kernels are chosen, readers started, buffers allocated in them


class Laps:
    """Seconds by part of a step, each up to the call that names it."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, dict.fromkeys(PARTS, 0.0)
        self._since = time.perf_counter()

    def __call__(self, part: str) -> None:
        """Give the time since the last call to a part."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.seconds[part] += now - self._since
        self._since = now


def benchmark(recipe: Recipe, steps: int, *, device: str) -> dict[str, Any]:
    """Train `steps` steps of a recipe, the last of its stages, without writing anything; return what was measured.

    images_per_second over all processes; milliseconds of a step by part, with their sum; the largest memory in MB, of
    the GPU where there is one, else of the process.
    """
    settings = dataclasses.replace(recipe.settings, log_with="", max_steps=max(recipe.settings.max_steps, steps + WARM))
    recipe = dataclasses.replace(recipe, settings=settings)
    with tempfile.TemporaryDirectory(prefix="repa-eval-benchmark-") as nowhere:
        accelerator = loop.accelerator_for(settings, device, Path(nowhere))
        laps = _timed(recipe, steps, accelerator)
    whole = sum(laps.seconds.values())
    return {
        "recipe": recipe.name,
        "model": recipe.model,
        "batch_size": settings.batch_size,
        "processes": accelerator.num_processes,
        "mixed_precision": settings.mixed_precision,
        "device": _name(accelerator.device),
        "steps": steps,
        "images_per_second": steps * settings.batch_size / whole,
        "milliseconds": {part: 1000 * seconds / steps for part, seconds in {**laps.seconds, "step": whole}.items()},
        "memory_mb": _memory(accelerator.device) / 1e6,
    }


def _timed(recipe: Recipe, steps: int, accelerator: Accelerator) -> Laps:
    settings = recipe.settings
    share = batches.share_of(settings.batch_size, accelerator, settings.gradient_accumulation)
    images = load_data(settings.data, settings.split)
    stages.refuse_images_for_latents(recipe, images)
    teachers = load_teachers(recipe, images, accelerator.device)
    stage = stages.resolve_stages(recipe, images, teachers)[-1]
    _, objective = loop.build(stage.recipe, images, teachers)
    reads = batches.reads_of(images, objective.model)
    optimizer = settings.optim.build(stage.recipe.method.parameter_groups(objective.model, objective.extras))
    ema = state.average_of(objective.model).to(accelerator.device)
    wrapped, optimizer = accelerator.prepare(objective, optimizer)
    laps = Laps(accelerator.device)
    loader = batches.loader(images, stage.recipe, stage.first, share, reads=reads)
    for number, fetched in enumerate(itertools.islice(loader, steps + WARM)):
        step = stage.first + number
        laps("data")
        parts = batches.parts(fetched, stage.recipe, step, share, teachers, accelerator.device, reads=reads, lap=laps)
        loop.update(accelerator, wrapped, parts, step, optimizer, ema, settings, first=stage.first, lap=laps)
        if number + 1 == WARM:
            laps = Laps(accelerator.device)
    return laps


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _memory(device: torch.device) -> int:
    """Return the largest number of bytes so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes on Linux


def shown(measured: dict[str, Any]) -> str:
    """Return what was measured as text."""
    facts = "{recipe}, {model}, batch {batch_size}, mixed precision {mixed_precision}, {device}, {steps} steps"
    speed = f"{measured['images_per_second']:.4g} images/s, {measured['memory_mb']:,.0f} MB"
    spent = measured["milliseconds"]
    body = [[part, f"{value:.2f}", f"{value / spent['step']:.1%}"] for part, value in spent.items()]
    return "\n".join([facts.format(**measured), speed, "", table(["part", "ms", "share"], body)])
