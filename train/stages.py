"""A run as the trainings that it is made of (most have one): what each is, where it starts, and what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from repa_eval import checkpoints
from repa_eval.config import flatten
from repa_eval.errors import UserError, first_line
from repa_eval.interfaces.images import Images
from repa_eval.interfaces.method import Method, name_of
from repa_eval.interfaces.teacher import Teacher
from repa_eval.train import state
from repa_eval.train.recipe import Recipe

# what a resumed run may change without becoming another run
FREE_ON_RESUME = frozenset({"max_steps", "checkpoint_every", "log_every", "num_workers", "description", "name"})


@dataclass(frozen=True, kw_only=True)
class Leg:
    """A stage of a run, resolved. recipe: what its checkpoints record; first: the steps that were taken before it."""

    recipe: Recipe
    first: int = 0
    samples: bool = True

    @property
    def last(self) -> int:
        """The step that it ends with."""
        return self.recipe.settings.max_steps


def legs_of(recipe: Recipe, images: Images, teachers: Sequence[Teacher]) -> list[Leg]:
    """Return the stages of a run in order; the last one's recipe is the run's own, resolved."""
    legs: list[Leg] = []
    for stage in recipe.method.stages():
        until = recipe.settings.max_steps if stage.until is None else stage.until
        if stage.until is not None and until >= recipe.settings.max_steps:
            raise UserError(
                f"a stage lasts until step {until}, and max_steps {recipe.settings.max_steps} ends before it"
            )
        settings = dataclasses.replace(recipe.settings, max_steps=until)
        own = dataclasses.replace(recipe, method=stage.method, settings=settings)
        first = legs[-1].last if legs else 0
        legs.append(Leg(recipe=fitted(own, images, teachers), first=first, samples=stage.samples))
    return legs


def fitted(recipe: Recipe, images: Images, teachers: Sequence[Teacher]) -> Recipe:
    """Return the recipe with its architecture resolved against data, teachers and method."""
    channels, height, width = images.shape
    names = {field.name for field in dataclasses.fields(recipe.architecture)}
    if height != width and "input_shape" not in names:
        raise UserError(f"data {images.name}: images of {height}x{width}; the models take square ones")
    of_data = {
        "input_size": max(height, width),
        "input_shape": () if height == width else (height, width),
        "in_channels": channels,
        "num_classes": images.num_classes,
        "captions": images.class_names,
        "bank_size": len(images),  # a memory bank holds one snippet per image, unless the method says otherwise
    }
    config = dataclasses.replace(recipe.architecture, **{k: v for k, v in of_data.items() if k in names})
    config = recipe.method.fitted(config, images, teachers)
    return dataclasses.replace(recipe, architecture=config)


def begin(leg: Leg, run: Path, model: nn.Module, images: Images, teachers: Sequence[Teacher]) -> None:
    """Give a fresh model what it starts with: the weights of the stage before it or of a file, and its buffers."""
    method: Method = leg.recipe.method
    source = str(state.checkpoint_path(run, leg.first)) if leg.first else method.starts_from()
    if source is not None:
        method.take_over(model, checkpoints.load(source, weights=method.start_weights).network)
    method.prepare(model, images, teachers)


def restore(path: Path, saved: Mapping[str, Any], objective: Any, ema: nn.Module, optimizer: Any) -> None:
    """Put the state `saved`, read from `path`, into fresh objects (objective: with `model` and `extras`)."""
    try:
        objective.model.load_state_dict(saved["model"])
        ema.load_state_dict(saved["ema"])
        objective.extras.load_state_dict(saved["method"])
        optimizer.load_state_dict(saved["opt"])
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{path} belongs to other settings: {first_line(error)}") from error


def leg_at(step: int, legs: Sequence[Leg]) -> Leg:
    """Return the stage whose updates led to `step`, the first one for step 0."""
    return next((leg for leg in legs if step <= leg.last), legs[-1])


def refuse_other_settings(path: Path, recorded: Mapping[str, Any], recipe: Recipe) -> None:
    """UserError if a run would go on with settings that would make it another run."""
    before, now = flatten(recorded), flatten(recipe.to_dict())
    changed = sorted(key for key in {*before, *now} - FREE_ON_RESUME if before.get(key) != now.get(key))
    if changed := [key for key in changed if not key.startswith("evaluation.")]:
        raise UserError(f"{path} was trained with other settings: {', '.join(changed)}; choose another --out")


def open_run(run: Path, recipe: Recipe, *, resume: bool) -> Path | None:
    """Return the checkpoint to continue from; UserError if the folder holds something that would be lost."""
    record = state.read_run(run)
    if record is None:
        if run.is_dir() and any(path.name[0] != "." for path in run.iterdir()):
            raise UserError(f"{run} is not empty and holds no run; choose another --out")
        return None
    ours = (recipe.name, name_of(recipe.method))
    theirs = (record.get("recipe"), record.get("method"))
    if theirs != ours:
        raise UserError(f"{run} holds another run ({theirs[0]}, method {theirs[1]}); choose another --out")
    if not resume:
        raise UserError(f"{run} holds this run already ({record.get('status')}); add --resume or choose another --out")
    return state.latest_checkpoint(run)
