"""The images of a probe: fitted on train, its setting chosen on val, scored on test; few-shot subsets of train."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from repa_eval.errors import UnknownSplitError, UserError
from repa_eval.interfaces.image_source import ImageSource
from repa_eval.interfaces.images import held_out_split, load_data
from repa_eval.probes.drawing import THREE_PARTS, TWO_PARTS, balanced, contents, hashes, parts_of
from repa_eval.runtime.distributed import is_first_process
from repa_eval.runtime.seeding import permutation

Array = np.ndarray[Any, Any]

_log = logging.getLogger(__name__)


class Splits:
    """The three parts of a probe: it is fitted on train, its one setting is chosen on val, its score is test's."""

    def __init__(self, train: ImageSource, val: ImageSource, test: ImageSource) -> None:
        self.train, self.val, self.test = train, val, test
        self.drawn: dict[str, Any] = {}  # how the parts were drawn from more images
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
        splits.drawn = {**self.drawn, "shots": shots, "shots_seed": seed}
        return splits

    def mapped(self, change: Callable[[ImageSource], ImageSource]) -> Splits:
        """Return the same splits, each part as `change` makes it; it keeps samples, order and labels."""
        splits = Splits(change(self.train), change(self.val), change(self.test))
        splits.drawn = self.drawn
        return splits

    def check(self) -> None:
        """Raise UserError unless there are two classes, and training images of every class that val or test have.

        Also where the test images are the training images.
        """
        if len(self.train) == len(self.test) and self.train.digest() == self.test.digest():
            raise UserError(
                f"training and test images are the same {len(self.test)} of {self.test.name}: a probe is scored on "
                "others"
            )
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

    def refuse_shared(self) -> None:
        """UserError where the probe is fitted on all test images; a warning that counts them where it is on some."""
        fitted, test = {*contents(self.train), *contents(self.val)}, contents(self.test)
        shared = sum(sample in fitted for sample in test)
        if shared == len(test):
            raise UserError(
                f"all {shared} test images of {self.test.name} are among the images of {self.train.name} that the "
                "probe is fitted on: name others with --test-data"
            )
        if shared and is_first_process():
            _log.warning("%d of %d test images are among the images that the probe is fitted on", shared, len(test))

    def refuse_other_classes(self) -> None:
        """UserError where a class has another name among the test images than among the training images."""
        names, others = self.train.class_names, self.test.class_names
        if not names or not others:
            return
        for label in np.unique(self.labels["test"]).tolist():
            mine, theirs = (found[label] if label < len(found) else "missing" for found in (names, others))
            if mine != theirs:
                raise UserError(
                    f"class {label} is {mine} in {self.train.name} and {theirs} in {self.test.name}: training and test "
                    "data need the same folders, or a dataset.json that numbers their classes alike"
                )


PROBE_TRAIN, PROBE_TEST = 1500, 600
PER_CLASS = {"train": 10, "val": 2, "test": 2}  # images, where the usual numbers are too few for many classes


def probe_splits(data: str, test_data: str | None = None, *, resolution: int | None = None, seed: int = 0) -> Splits:
    """Return the parts of a probe, as many images as there are up to the usual numbers.

    test_data: other data that the test images are of. Data without splits are divided by a hash of (seed, index): 70 %
    train, 10 % val, 20 % test; with test_data, and where only validation images are missing, 90 % train, 10 % val.
    resolution: see `load_data`. UserError where test images are training images.
    """
    test = load_data(test_data or data, held_out_split(test_data or data), resolution=resolution)
    divided = test_data is None and not test.split_known
    train = test if divided else load_data(data, "train", resolution=resolution)
    for source in (train, test):
        source.require("labels")
    drawn: dict[str, Any] = {}
    val = _validation(data, resolution, None if test_data else test) if train.split_known else None
    if val is not None:
        parts = {"train": train, "val": val}
    else:
        parts, drawn = _divided(train, THREE_PARTS if divided else TWO_PARTS, seed)
    if test_data is None and val is not None:
        few, some = train.head(min(PROBE_TRAIN, len(train))), test.head(min(PROBE_TEST, len(test)))
        if _of_all_classes(few, train) and _of_all_classes(some, test):
            return Splits(few, val, some)
    if not divided:
        parts["test"] = test
    if test_data is not None:
        drawn["train_data"] = train.name
    splits = Splits(**{name: _usual(name, images, seed) for name, images in parts.items()})
    splits.drawn = drawn
    splits.refuse_other_classes()
    splits.refuse_shared()
    return splits


def _validation(data: str, resolution: int | None, test: ImageSource | None) -> ImageSource | None:
    """Return the validation images, None where the data have none but the test images."""
    try:
        val = load_data(data, "val", resolution=resolution)
    except UnknownSplitError:
        return None
    return None if test is not None and (val.name, val.split) == (test.name, test.split) else val


def _of_all_classes(few: ImageSource, images: ImageSource) -> bool:
    """Return whether a part has images of all classes, as the first ones of a sorted set have not."""
    return set(few.all_labels().tolist()) == set(images.all_labels().tolist())


def _divided(
    source: ImageSource, shares: Mapping[str, float], seed: int
) -> tuple[dict[str, ImageSource], dict[str, Any]]:
    """Return the parts of a set, and the protocol entries that say how they were drawn."""
    said = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    rows = parts_of(hashes(len(source), seed), shares)
    if min(map(len, rows.values())) < 1:
        counts = ", ".join(f"{name} {len(own)}" for name, own in rows.items())
        raise UserError(
            f"{source.name} has {len(source)} images, too few to divide ({counts}): name more, or --test-data"
        )
    record = {"parts": f"{said}, by hash of (seed, index)", "parts_seed": seed}
    return {name: source.take(own) for name, own in rows.items()}, record


def _usual(part: str, images: ImageSource, seed: int) -> ImageSource:
    """Return the usual number of images of a part, balanced over the classes."""
    labels = images.all_labels()
    most = max(PROBE_TRAIN if part == "train" else PROBE_TEST, PER_CLASS[part] * images.num_classes)
    if len(images) <= most:
        return images
    return images.take(balanced(np.arange(len(images)), labels, hashes(len(images), seed), most))
