"""Features of a teacher that the data bring, as the shards of ERW and GMem do, in place of images for it to read."""

from __future__ import annotations

import hashlib
from typing import NoReturn

import numpy as np
from torch import Tensor

from repa_eval.errors import UserError
from repa_eval.interfaces.image_source import ImageSource, Samples
from repa_eval.interfaces.teacher import Teacher, Tokens


class GivenFeatures(Teacher):
    """A teacher whose tokens the data bring. It reads no image, and no weights are loaded for it."""

    def __init__(self, name: str, images: ImageSource) -> None:
        super().__init__()
        assert images.feature_width is not None
        self.name, self.width = name, images.feature_width
        first = images.fetch([0], ("features",)).features
        content = b"" if first is None else np.ascontiguousarray(first.numpy()).tobytes()
        self.digest = f"of the data, {hashlib.sha256(content).hexdigest()[:12]}"

    def forward(self, images: Tensor) -> NoReturn:
        """Raise UserError: the tokens are those of the data alone."""
        raise UserError(f"the data bring features of {self.name} and no images, which are needed here")


def brings_tokens(images: ImageSource) -> bool:
    """Return whether a teacher's tokens come from the data: they hold features and no images."""
    return "features" in images.gives and "images" not in images.gives


def kinds_of_teachers(images: ImageSource) -> set[str]:
    """Return the kinds of data that teachers read: images, or the tokens that the data bring instead."""
    return {"features", *({"class_tokens"} & images.gives)} if brings_tokens(images) else {"images"}


def given_tokens(samples: Samples) -> Tokens:
    """Return the tokens that data bring, float32."""
    assert samples.features is not None
    cls = samples.class_tokens
    return Tokens(patches=samples.features.float(), cls=None if cls is None else cls.float())


def tokens_by(teacher: Teacher, samples: Samples) -> Tokens:
    """Return what a teacher says of samples, by their images or as the data bring it."""
    if isinstance(teacher, GivenFeatures):
        return given_tokens(samples)
    tokens: Tokens = teacher(samples.pixels.to(next(teacher.parameters()).device))
    return tokens
