"""Measure what a training step of every method costs relative to vanilla, and write the table of `repa-train --list`.

    python benchmarks/method_cost.py [--rounds 20] [--device cpu]

The shipped digits recipes at their own size, one thread: forward, backward, optimiser, average, and the teacher on
the images. Methods take turns, round by round, so that a busy machine slows all of them; the ratio is that of medians
of CPU seconds (of the clock on CUDA). A stage, and the steps after a stop, have a number of their own.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from repa_eval.interfaces.images import load_data
from repa_eval.interfaces.method import METHODS
from repa_eval.interfaces.teacher import load_teacher
from repa_eval.train import batches, state
from repa_eval.train.loop import build, update
from repa_eval.train.recipe import builtin_recipes, read_recipe, resolve
from repa_eval.train.stages import resolve_stages

TABLE = Path(__file__).resolve().parent.parent / "train" / "cost.json"
BASELINE = "vanilla"
STEPS = 5  # per turn


@dataclass
class Arm:
    """One number of the table: a method, the part of its run, and what takes one step of it."""

    method: str
    part: str
    take: Callable[[], None]


def arms(device: str) -> list[Arm]:
    """Return the arms of every method that ships a recipe on the embedded data."""
    recipes = {str(read_recipe(name)["method"]): name for name in builtin_recipes() if name.startswith("digits-")}
    recipes |= {name: f"digits-{name}" for name in METHODS.names() if f"digits-{name}" in builtin_recipes()}
    return [arm for name in METHODS.names() if name in recipes for arm in arms_of(name, recipes[name], device)]


def arms_of(name: str, shipped: str, device: str) -> list[Arm]:
    recipe = resolve(read_recipe(shipped), {"split": "val"})
    images = load_data(recipe.settings.data, recipe.settings.split)
    teachers = [load_teacher(teacher).to(device) for teacher in recipe.method.teachers()]
    resolved = resolve_stages(recipe, images, teachers)
    found = []
    for number, stage in enumerate(resolved, 1):
        method, last = stage.recipe.method, stage.last - 1
        part = f"stage {number}" if len(resolved) > 1 else ""
        found.append(Arm(name, part, stepper(stage.recipe, stage.first, images, teachers, device)))
        if teachers and method.active(stage.first) and not method.active(last):
            found.append(Arm(name, f"{part} stopped".strip(), stepper(stage.recipe, last, images, teachers, device)))
    return found


def stepper(recipe: Any, step: int, images: Any, teachers: list[Any], device: str) -> Callable[[], None]:
    """Return what takes optimisation step number `step`, again and again, on the first batch."""
    accelerator = Accelerator(cpu=device == "cpu")
    _, objective = build(recipe, images, teachers)
    optimizer = recipe.settings.optim.build(recipe.method.trainable(objective.model, objective.extras))
    ema = state.average_of(objective.model).to(device)
    wrapped, optimizer = accelerator.prepare(objective, optimizer)
    share = range(recipe.settings.batch_size)
    fetched = images.fetch(list(share))

    def take() -> None:
        parts = batches.parts(fetched, recipe, step, share, teachers, torch.device(device))
        update(accelerator, wrapped, parts, step, optimizer, ema, recipe.settings)

    return take


def seconds(take: Callable[[], None], device: str) -> float:
    """Return the seconds per step of one turn."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    began = clock()
    for _ in range(STEPS):
        take()
    if device != "cpu":
        torch.cuda.synchronize()
    return (clock() - began) / STEPS


def measure(rounds: int, device: str) -> dict[str, Any]:
    """Return the table: how it was measured, and method -> part -> cost relative to vanilla."""
    torch.set_num_threads(1)
    taking = arms(device)
    times: dict[tuple[str, str], list[float]] = {(arm.method, arm.part): [] for arm in taking}
    for turn in range(rounds + 1):
        for arm in taking:
            spent = seconds(arm.take, device)
            if turn:  # the first turn warms up
                times[arm.method, arm.part].append(spent)
    typical = {key: statistics.median(values) for key, values in times.items()}
    relative: dict[str, dict[str, float]] = {}
    for (name, part), spent in typical.items():
        relative.setdefault(name, {})[part] = round(spent / typical[BASELINE, ""], 2)
    processor = torch.cuda.get_device_name() if device != "cpu" else platform.processor() or platform.machine()
    how = f"digits recipes at their own size, {processor}, {'one thread' if device == 'cpu' else 'one device'}"
    return {"measured": how, "torch": torch.__version__, "baseline": BASELINE, "relative": relative}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="turns of 5 steps for every method")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    table = measure(given.rounds, given.device)
    TABLE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
