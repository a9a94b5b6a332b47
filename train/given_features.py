"""Teachers of a run: frozen encoders that read images, or what one of them gave for data that hold no images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from repa_eval.errors import UserError
from repa_eval.interfaces.image_source import ImageSource, Samples
from repa_eval.interfaces.teacher import RecordedTeacher, Teacher, Tokens
from repa_eval.train.recipe import Recipe


class GivenFeatures(Teacher):
    """A teacher whose tokens the data bring, as the shards of ERW and GMem do. It reads no image."""

    def __init__(self, name: str, width: int) -> None:
        super().__init__()
        self.name, self.width, self.digest = name, width, "of the data"

    def forward(self, images: Tensor) -> NoReturn:
        """Raise UserError: the tokens are those of the data alone."""
        raise UserError(f"the data bring features of {self.name} and no images, which are needed here")


def load_teachers(recipe: Recipe, images: ImageSource, device: torch.device) -> list[Teacher]:
    """Return the teachers of a run on a device; those whose tokens the data bring in place of images are not loaded."""
    if not brings_tokens(images):
        return [teacher.load().to(device) for teacher in recipe.teachers]
    return given_teachers(recipe.teachers, images)


def brings_tokens(images: ImageSource) -> bool:
    """Return whether a teacher's tokens come from the data: they hold features and no images."""
    return "features" in images.gives and "images" not in images.gives


def given_teachers(teachers: Sequence[RecordedTeacher], images: ImageSource) -> list[Teacher]:
    """Return the teacher whose tokens the data bring, none for a method without; UserError for several."""
    if not teachers:
        return []
    if len(teachers) > 1:
        names = ",".join(teacher.name for teacher in teachers)
        raise UserError(f"enc_type {names}: the data {images.name} bring the features of one teacher and no images")
    assert images.feature_width is not None
    return [GivenFeatures(teachers[0].name, images.feature_width)]


def kinds_for(images: ImageSource) -> set[str]:
    """Return the kinds of data that teachers read: images, or the tokens that the data bring instead."""
    return {"features", *({"class_tokens"} & images.gives)} if brings_tokens(images) else {"images"}


def given_tokens(samples: Samples) -> Tokens:
    """Return the tokens that data bring, float32."""
    assert samples.features is not None
    cls = samples.class_tokens
    return Tokens(patches=samples.features.float(), cls=None if cls is None else cls.float())


def tokens_of(images: ImageSource, rows: Sequence[int], teacher: Teacher) -> Tokens:
    """Return what a teacher says of samples, by their images or as the data bring it."""
    if isinstance(teacher, GivenFeatures):
        return given_tokens(images.fetch(rows, kinds_for(images)))
    tokens: Tokens = teacher(images.pixels(rows).to(next(teacher.parameters()).device))
    return tokens


def check_captions(config: Any, images: Any) -> None:
    """UserError for data that have neither captions nor features of them."""
    if not config.captions and "text" not in images.gives:
        raise UserError("these data have no captions; digits-captions has")
