"""What a recipe would train, found out without weights of teachers and without a step: `repa-train --dry-run`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from repa_eval.errors import UserError
from repa_eval.features.given import brings_tokens
from repa_eval.features.model_input import model_input
from repa_eval.interfaces.architecture import find_preset
from repa_eval.interfaces.image_source import ImageSource
from repa_eval.interfaces.images import find_layout, load_data
from repa_eval.interfaces.teacher import RecordedTeacher, Teacher
from repa_eval.train import stages
from repa_eval.train.given_features import given_teachers
from repa_eval.train.recipe import Recipe

CONVERTED = "idle channels"  # what methods require that convert their teacher: its weights tell the network


def resolve_all(recipe: Recipe) -> tuple[dict[str, Any], list[str]]:
    """Return the tree of a recipe with the sizes that data and teachers give it, and notes on what is not known.

    The tree has the further entry `resolved`: number of samples, shapes, classes, parameters. UserError as training
    would raise it, but for data that are not there yet.
    """
    images = data_of(recipe)
    if images is None:
        return recipe.to_dict(), [f"data {recipe.settings.data} do not exist here: their sizes are left out"]
    stages.refuse_images_for_latents(recipe, images)
    images.survey(range(len(images)))
    last = stages.resolve_stages(recipe, images, _teachers_of(recipe, images))[-1].recipe
    with torch.device("meta"):
        network = find_preset(last.model)[0].build(last.architecture)
    facts = {
        "samples": len(images),
        "num_classes": images.num_classes,
        "images": None if images.image_shape is None else list(images.image_shape),
        "latents": None if images.latent_shape is None else list(images.latent_shape),
        "model_reads": _reads(images, network),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    }
    return {**last.to_dict(), "resolved": facts}, []


def _reads(images: ImageSource, network: Any) -> str:
    shape = getattr(network, "image_shape", None)
    return "images" if shape is None else model_input(images, shape).kind


def data_of(recipe: Recipe) -> ImageSource | None:
    """Return the data, None for a path at which nothing lies."""
    spec = recipe.settings.data
    try:
        find_layout(spec)
    except UserError:
        if not Path(spec).exists() and "/" in spec:
            return None
        raise
    return load_data(spec, recipe.settings.split)


def _teachers_of(recipe: Recipe, images: ImageSource) -> list[Teacher]:
    """Return the teachers; of those by name whose weights would be downloaded only the width is known."""
    if brings_tokens(images):
        return given_teachers(recipe.teachers, images)
    converted = CONVERTED in recipe.method.requires
    return [_by_width(teacher) if not converted else teacher.load() for teacher in recipe.teachers]


def _by_width(teacher: RecordedTeacher) -> Teacher:
    if (teacher.weights is None or Path(teacher.weights).exists()) and (network := _timm_network(teacher.name)):
        import timm

        with torch.device("meta"):
            hollow: Any = timm.create_model(network, num_classes=0)
        return _WidthAlone(teacher.name, hollow.num_features)
    return teacher.load()


class _WidthAlone(Teacher):
    """A teacher of which only the width is known: what a network's projectors are sized by."""

    def __init__(self, name: str, width: int) -> None:
        super().__init__()
        self.name, self.width, self.digest = name, width, "not loaded"

    def forward(self, images: Tensor) -> NoReturn:
        """Raise: nothing is computed in a dry run."""
        raise AssertionError(f"{self.name} is not loaded in a dry run")


def _timm_network(name: str) -> str | None:
    """Return timm's name of the network of an official teacher or of `timm:NAME`, None for other teachers."""
    from repa_eval.teachers.official import FAMILIES, SIZES

    if name.startswith("timm:"):
        return name.removeprefix("timm:")
    prefix, _, letter = name.partition("-vit-")
    if prefix not in FAMILIES or letter not in FAMILIES[prefix].letters:
        return None
    return FAMILIES[prefix].network.format(SIZES[letter]).partition(".")[0]
