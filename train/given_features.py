"""Teachers of a run: frozen encoders that read images, or what one of them gave for data that hold no images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from repa_eval.errors import UserError
from repa_eval.features.given import GivenFeatures, brings_tokens, kinds_of_teachers, tokens_by
from repa_eval.interfaces.image_source import ImageSource
from repa_eval.interfaces.teacher import RecordedTeacher, Teacher, Tokens
from repa_eval.train.recipe import Recipe


def load_teachers(recipe: Recipe, images: ImageSource, device: torch.device) -> list[Teacher]:
    """Return the teachers of a run on a device; those whose tokens the data bring in place of images are not loaded."""
    if not brings_tokens(images):
        return [teacher.load().to(device) for teacher in recipe.teachers]
    return given_teachers(recipe.teachers, images)


def given_teachers(teachers: Sequence[RecordedTeacher], images: ImageSource) -> list[Teacher]:
    """Return the teacher whose tokens the data bring, none for a method without; UserError for several."""
    if not teachers:
        return []
    if len(teachers) > 1:
        names = ",".join(teacher.name for teacher in teachers)
        raise UserError(f"enc_type {names}: the data {images.name} bring the features of one teacher and no images")
    return [GivenFeatures(teachers[0].name, images)]


def tokens_of(images: ImageSource, rows: Sequence[int], teacher: Teacher) -> Tokens:
    """Return what a teacher says of samples, by their images or as the data bring it."""
    return tokens_by(teacher, images.fetch(rows, kinds_of_teachers(images)))


def check_captions(config: Any, images: Any) -> None:
    """UserError for data that have neither captions nor features of them."""
    if not config.captions and "text" not in images.gives:
        raise UserError("these data have no captions; digits-captions has")
