"""What every kind of probe is given and what it answers: it learns and chooses without having seen a test image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from repa_eval.errors import UserError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Known:
    """Everything that a probe may learn from: features of several layers, and labels. Test images are not in it.

    train: an array (N, D) per layer; val: one (V, D) per layer. D may differ between layers.
    """

    train: Sequence[Array]
    train_labels: Array  # (N,)
    val: Sequence[Array]
    val_labels: Array  # (V,)
    num_classes: int


@dataclass(frozen=True)
class Probe:
    """A fitted probe of one layer: predict maps features (M, D) to classes (M,), each from its own row alone.

    chosen: the setting that was best on the validation images. remark: what a reader of its score must know.
    """

    predict: Callable[[Array], Array]
    chosen: str
    remark: str | None = None


def check_finite(features: Array, layer: str, part: str) -> None:
    """Raise UserError, naming the layer and the first image, if features (N, D) hold NaN or infinity."""
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        raise UserError(
            f"{layer}: the features of {part} image {bad[0]} are not finite ({len(bad)} of {len(features)} images)"
        )
