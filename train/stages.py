"""A run as the trainings that it consists of, most often one: what each of them is, and with what it begins."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from repa_eval import checkpoints
from repa_eval.errors import Failure, UserError, short_repr
from repa_eval.interfaces.checkpoint_layout import Checkpoint
from repa_eval.interfaces.image_source import ImageSource
from repa_eval.interfaces.method import Method, take_over_weights
from repa_eval.interfaces.teacher import Teacher
from repa_eval.train import state
from repa_eval.train.batches import reads_text
from repa_eval.train.recipe import OF_DATA, Recipe

IMAGE_CHANNELS = (1, 3)  # of images; whatever has others is a latent


@dataclass(frozen=True, kw_only=True)
class ResolvedStage:
    """A stage of a run with its architecture resolved.

    recipe: what its checkpoints record. first: steps taken before it. samples: whether images can be generated from it.
    """

    recipe: Recipe
    first: int = 0
    samples: bool = True

    @property
    def last(self) -> int:
        """The step at which it ends."""
        return self.recipe.settings.max_steps


def resolve_stages(recipe: Recipe, images: ImageSource, teachers: Sequence[Teacher]) -> list[ResolvedStage]:
    """Return the stages of a run in order; the last one's recipe is the run's own, resolved."""
    resolved: list[ResolvedStage] = []
    stages = recipe.method.stages()
    if recipe.settings.start_from is not None and len(stages) > 1:
        raise UserError("start_from: this run has stages, each of which begins with the one before; choose stage=full")
    for stage in stages:
        until = recipe.settings.max_steps if stage.until is None else stage.until
        if stage.until is not None and until >= recipe.settings.max_steps:
            raise UserError(
                f"a stage lasts until step {until}, and max_steps {recipe.settings.max_steps} ends before it"
            )
        settings = dataclasses.replace(recipe.settings, max_steps=until)
        own = dataclasses.replace(recipe, method=stage.method, settings=settings)
        first = resolved[-1].last if resolved else 0
        resolved.append(ResolvedStage(recipe=fitted(own, images, teachers), first=first, samples=stage.samples))
    return resolved


def fitted(recipe: Recipe, images: ImageSource, teachers: Sequence[Teacher]) -> Recipe:
    """Return the recipe with its architecture resolved against data, teachers and method.

    UserError where the data are not what the recipe says it trains on: no network is rebuilt for other data. A number
    of classes that is said may be larger than that of the data.
    """
    names = {field.name for field in dataclasses.fields(recipe.architecture)}
    stated = {key: _as_field(value) for key, value in recipe.stated.items() if key in names and key in OF_DATA}
    refuse_images_for_latents(recipe, images)
    channels, height, width = images.model_shape
    if height != width and "input_shape" not in names:
        raise UserError(f"data {images.name}: images of {height}x{width}; the models take square ones")
    of_data = {
        "input_size": max(height, width),
        "input_shape": () if height == width else (height, width),
        "in_channels": channels,
        "num_classes": max(images.num_classes, stated.get("num_classes", 0)),
        "captions": images.class_names,
        "bank_size": len(images),  # a memory bank holds one snippet per image, unless the method says otherwise
    }
    if reads_text(images, recipe.method):
        of_data |= {"num_classes": 0, **_text_sizes(images)}
    config = dataclasses.replace(recipe.architecture, **{k: v for k, v in of_data.items() if k in names})
    config = recipe.method.fitted(config, images, teachers)
    for key, value in sorted(stated.items()):
        if value != (actual := getattr(config, key)):
            given = f"architecture.{key}: {short_repr(value)} was given"
            raise UserError(f"{given}, but the data {images.name} have {short_repr(actual)}; leave it out")
    return dataclasses.replace(recipe, architecture=config, fitted=True)


def _text_sizes(images: ImageSource) -> dict[str, int]:
    """Return the number of text tokens of a caption and their width, those of the first sample."""
    text = images.fetch([0], ("text",)).text
    assert text is not None
    return {"num_words": text.shape[1], "context_size": text.shape[2]}


def refuse_images_for_latents(recipe: Recipe, images: ImageSource) -> None:
    """UserError, with the command that makes latents, where a recipe trains on latents and the data hold images."""
    channels, side = (recipe.stated.get(key) for key in ("in_channels", "input_size"))
    if channels is None or channels in IMAGE_CHANNELS or images.latent_shape is not None:
        return
    shape = "x".join(str(size) for size in (channels, side, side) if size is not None)
    pixels = f" --resolution {8 * side}" if isinstance(side, int) else ""
    raise UserError(
        f"data {images.name} hold images and no latents, and this recipe trains on latents of {shape}: make them with "
        f"repa-eval prepare {recipe.settings.data} DIR{pixels} --vae stabilityai/sd-vae-ft-mse, then name DIR as data"
    )


def _as_field(value: Any) -> Any:
    """Return a value as a config holds it: YAML writes tuples as lists."""
    return tuple(value) if isinstance(value, list) else value


def begin(stage: ResolvedStage, run: Path, model: nn.Module, images: ImageSource, teachers: Sequence[Teacher]) -> None:
    """Give a fresh model what it starts with: the weights of the stage before it or of a file, and its buffers."""
    method: Method = stage.recipe.method
    before = [str(state.checkpoint_path(run, stage.first))] if stage.first else sources_of(stage.recipe)
    for source in before:
        network = _opened(source, method.start_weights).network
        if source == stage.recipe.settings.start_from and method.starts_from() is not None:
            take_over_weights(model, network)  # on top of what the method itself starts from
        else:
            method.take_over(model, network)
    method.prepare(model, images, teachers)


def sources_of(recipe: Recipe) -> list[str]:
    """Return the checkpoints whose weights a fresh run begins with: that of its method, then `start_from`."""
    named = (recipe.method.starts_from(), recipe.settings.start_from)
    return [source for source in named if source is not None]


def _opened(source: str, weights: str) -> Checkpoint:
    """Return a checkpoint with the wanted weights, or the other ones where it holds no such."""
    try:
        return checkpoints.load(source, weights=weights)
    except UserError as error:
        if isinstance(error, Failure):
            raise
        with contextlib.suppress(UserError):
            return checkpoints.load(source, weights="online" if weights == "ema" else "ema")
        raise


def stage_at(step: int, stages: Sequence[ResolvedStage]) -> ResolvedStage:
    """Return the stage whose updates led to `step`, the first one for step 0."""
    return next((stage for stage in stages if step <= stage.last), stages[-1])
