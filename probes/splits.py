"""The images of a probe: fitted on train, its setting chosen on val, scored on test; few-shot subsets of train."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from repa_eval.errors import UserError
from repa_eval.interfaces.image_source import ImageSource
from repa_eval.interfaces.images import held_out_split, load_data
from repa_eval.runtime.seeding import permutation

Array = np.ndarray[Any, Any]


class Splits:
    """The three parts of a probe: it is fitted on train, its one setting is chosen on val, its score is test's."""

    def __init__(self, train: ImageSource, val: ImageSource, test: ImageSource) -> None:
        self.train, self.val, self.test = train, val, test
        self.drawn: dict[str, Any] = {}  # how train was drawn from more images
        if min(map(len, (train, val, test))) < 1:
            raise UserError("a probe needs training, validation and test images")

    def parts(self) -> dict[str, ImageSource]:
        """Return the three parts by name."""
        return {"train": self.train, "val": self.val, "test": self.test}

    @functools.cached_property
    def labels(self) -> dict[str, Array]:
        """The labels (N,) of the three parts by name."""
        return {name: images.all_labels() for name, images in self.parts().items()}

    def few(self, shots: int, *, seed: int = 0) -> Splits:
        """Return the same splits with `shots` training images of every class, drawn by the seed; val is unchanged.

        The draw of a class depends on the seed and the class alone, and fewer shots are a part of more.
        """
        if shots < 1:
            raise UserError(f"{shots} shots: at least one training image of every class is needed")
        kept = []
        for label in np.unique(self.labels["train"]):
            own = np.flatnonzero(self.labels["train"] == label)
            if len(own) < shots:
                raise UserError(f"{shots} shots: class {label} has {len(own)} training images")
            kept.append(own[permutation(len(own), seed, "shots", int(label))[:shots].numpy()])
        rows = np.sort(np.concatenate(kept))
        splits = Splits(self.train.take(rows), self.val, self.test)
        splits.drawn = {"shots": shots, "shots_seed": seed}
        return splits

    def mapped(self, change: Callable[[ImageSource], ImageSource]) -> Splits:
        """Return the same splits, each part as `change` makes it; it keeps samples, order and labels."""
        splits = Splits(change(self.train), change(self.val), change(self.test))
        splits.drawn = self.drawn
        return splits

    def check(self) -> None:
        """Raise UserError unless there are two classes, and training images of every class that val or test have."""
        for name, images in self.parts().items():
            labels = self.labels[name]
            wrong = labels[(labels < 0) | (labels >= images.num_classes)]
            if len(wrong):
                raise UserError(f"{name} has an image of class {wrong[0]}; the classes are 0..{images.num_classes - 1}")
        known = np.unique(self.labels["train"])
        if len(known) < 2:
            raise UserError(f"all {len(self.train)} training images are of class {known[0]}; a probe needs two classes")
        lacking = np.setdiff1d(np.concatenate([self.labels["val"], self.labels["test"]]), known)
        if len(lacking):
            classes = len(known) + len(lacking)
            few = f"{len(self.train)} training images of {classes} classes" if len(self.train) < classes else ""
            why = few or f"no training image of class {lacking[0]} ({len(lacking)} of {classes} classes lack one)"
            raise UserError(f"{why}; a probe needs at least one of every class that it is asked for")

    def record(self) -> dict[str, Any]:
        """Return the protocol entries of the images."""
        parts = self.parts()
        sizes = {f"num_{name}": len(images) for name, images in parts.items()}
        hashes = {f"{name}_hash": images.digest() for name, images in parts.items()}
        return {"data": self.test.name, "split": self.test.split, **sizes, **hashes, **self.drawn}


PROBE_TRAIN, PROBE_TEST = 1500, 600


def probe_splits(data: str) -> Splits:
    """Return the parts of a probe, as many images as there are up to the usual numbers."""
    train, test = load_data(data, "train"), load_data(data, held_out_split(data))
    return Splits(
        train.head(min(PROBE_TRAIN, len(train))), load_data(data, "val"), test.head(min(PROBE_TEST, len(test)))
    )
