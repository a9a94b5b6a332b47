"""The demo: three models on the embedded digits, and what is evaluated of them at which steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from repa_eval.diffusion.timesteps import TIMESTEPS
from repa_eval.errors import UserError
from repa_eval.interfaces.monitor import AtSteps, Monitor
from repa_eval.monitors.alignment import AlignmentMap
from repa_eval.monitors.copies import Copies
from repa_eval.monitors.probes import Probes
from repa_eval.monitors.real_level import RealLevel
from repa_eval.monitors.shared.suites import training_monitors
from repa_eval.monitors.token_colours import TokenColours
from repa_eval.train.evaluated import evaluated_run
from repa_eval.train.loop import train
from repa_eval.train.recipe import Recipe, read_recipe, resolve
from repa_eval.train.state import read_run

MODELS = ("vanilla", "repa", "repa-random")  # each has the recipe digits-<model>
BASELINE, CONTROL = "vanilla", "repa-random"
TEACHER = "digits-vit"  # all models are compared with it
SHORT = 300  # fewer steps than these: one map and few samples, which shows within a minute that everything works


def train_demo_model(model: str, folder: Path, *, seed: int, steps: int, device: str, progress: bool) -> None:
    """Train and evaluate one of MODELS into a run folder; a finished run is left as it is.

    UserError if the folder holds a demo of another seed or length. Raises Interrupted after Ctrl-C.
    """
    record = read_run(folder)
    for key, expected in (("max_steps", steps), ("seed", seed)):
        if record is not None and record.get(key) != expected:
            raise UserError(
                f"{folder} contains a demo with {key} {record.get(key)}, not {expected}; choose another --out"
            )
    if record is not None and record.get("status") == "done":
        return
    recipe = demo_recipe(model, seed, steps)
    labels = {"control": model == CONTROL, "baseline": model == BASELINE}
    monitors = demo_monitors(recipe, folder, device)
    train(recipe, folder, monitors=monitors, resume=True, device=device, progress=progress, labels=labels)


def demo_recipe(model: str, seed: int, steps: int) -> Recipe:
    """Return the recipe of a model for this many steps; fewer than the recipe's own have fewer evaluations."""
    tree = read_recipe(f"digits-{model}")
    overrides: dict[str, Any] = {"seed": seed, "max_steps": steps}
    if steps < tree["max_steps"]:
        points = 15 if steps >= SHORT else 4
        overrides |= {"eval_every": max(1, steps // points), "checkpoint_every": max(1, steps // 3)}
        overrides |= {"warmup_steps": min(50, steps // 4)}
    if steps < SHORT:
        overrides |= {"final_samples": 512, "num_samples": 256}
    return resolve(tree, overrides)


def demo_monitors(recipe: Recipe, folder: Path, device: str) -> list[Monitor]:
    """Return the trainer's own monitors, those of the last step, and maps, probes and token pictures at three steps."""
    run = evaluated_run(recipe, folder, device, further_teachers=[TEACHER])
    steps, every = recipe.settings.max_steps, recipe.settings.evaluation.eval_every
    points = steps // every
    long = steps >= SHORT
    at = {every * max(1, points // 5), every * max(1, points // 2), steps} if long else {steps}
    timesteps = TIMESTEPS if long else TIMESTEPS[1:4:2]
    slow = [AlignmentMap(run, timesteps=timesteps), Probes(run, timesteps=timesteps), TokenColours(run, teacher=-1)]
    return [*training_monitors(run), RealLevel(run), Copies(run), *(AtSteps(monitor, at) for monitor in slow)]
