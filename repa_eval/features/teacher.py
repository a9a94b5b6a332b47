"""Features of a teacher: its patch tokens for clean images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repa_eval.errors import UserError
from repa_eval.features.capture import Capture, collect
from repa_eval.features.given import GivenFeatures, kinds_of_teachers, tokens_by
from repa_eval.interfaces.image_source import ImageSource, Samples
from repa_eval.interfaces.teacher import Teacher

Array = np.ndarray[Any, Any]


@torch.no_grad()
def teacher_features(teacher: Teacher, images: ImageSource, *, capture: Capture | None = None) -> Array:
    """Return (N, D) float32: token means of the teacher's patch features of clean images (see Capture for others)."""
    capture = capture or Capture()

    def forward(samples: Samples, indices: Sequence[int], names: Sequence[str]) -> dict[str, Tensor]:
        tokens = tokens_by(teacher, samples)
        if capture.pool == "cls":
            if tokens.cls is None:
                raise UserError(f"teacher {teacher.name} has no class token; pool it by mean")
            return {"teacher": tokens.cls.float().cpu()}
        return {"teacher": capture.pooled(tokens.patches, 0)}

    record = {"kind": "teacher", "teacher": teacher.name, "weights": teacher.digest}
    still = replace(capture, seed=0, stream="")  # clean images have no noise
    kinds = sorted(kinds_of_teachers(images)) if isinstance(teacher, GivenFeatures) else ("images",)
    return collect(images, {"teacher": 0}, forward, record, still, kinds=kinds)["teacher"]
