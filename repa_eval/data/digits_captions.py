"""Embedded images with captions: two handwritten digits side by side, "a three left of a seven".

A hundred captions of which every one is made of the same words but two, in this order: what a model gets wrong is which
digit stands where. The digits of the splits are disjoint: permutation of scikit-learn's 1,797 as in data `digits`.
"""

from __future__ import annotations

import functools

import numpy as np
import torch

from repa_eval.errors import UserError
from repa_eval.interfaces.images import Images, data, in_memory, load_data
from repa_eval.runtime.seeding import generator

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CAPTIONS = tuple(f"a {left} left of a {right}" for left in NAMES for right in NAMES)
COUNTS = {"train": 12_000, "reference": 4_000, "val": 1_000, "test": 4_000}


@data("digits-captions", measured=600)
def load(rest: str, split: str) -> Images:
    """Return a split: uint8 images (N, 1, 8, 16), labels 10 left + right, class_names the captions.

    train: 12,000 pairs of the 1,197 training digits; reference: the first 4,000 of them. val: 1,000 pairs of the 240
    digits of `digits` val, test: 4,000 pairs of its 360 test digits. Which digits make a pair is drawn once, for ever.
    """
    if rest:
        raise UserError(f"data 'digits-captions' takes no name after the colon (given: {rest!r})")
    if split not in COUNTS:
        raise UserError(f"data digits-captions has no split {split!r}; choose one of {', '.join(COUNTS)}")
    return _load(split)


@functools.cache
def _load(split: str) -> Images:
    pixels, labels = _digits(split)
    stream = "train" if split == "reference" else split
    gen = generator(0, "digits-captions", stream)
    pairs = torch.randint(len(pixels), (COUNTS[stream], 2), generator=gen).numpy()[: COUNTS[split]]
    images = np.concatenate([pixels[pairs[:, 0]], pixels[pairs[:, 1]]], axis=3)
    classes = 10 * labels[pairs[:, 0]] + labels[pairs[:, 1]]
    return Images("digits-captions", split, images, classes, len(CAPTIONS), CAPTIONS, captioned=True)


def _digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the untouched digits (N, 1, 8, 8) of a split and their classes (N,)."""
    if split not in ("train", "reference"):
        plain = in_memory(load_data("digits", split))
        return plain.images, plain.labels
    # the 1,437 of trainval are those of train, then those of val
    both, val = (in_memory(load_data("digits", name)) for name in ("trainval", "val"))
    count = len(both) - len(val)
    return both.images[:count], both.labels[:count]
