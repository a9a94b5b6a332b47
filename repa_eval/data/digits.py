"""The embedded data: scikit-learn's 1,797 real handwritten digits, 8x8 grey, with a fixed augmentation.

Permutation with seed 0: 1,197 train, 240 val, 360 test. Everything here is the same on every machine and in every run.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from repa_eval.errors import UnknownSplitError, UserError
from repa_eval.interfaces.images import Images, data, in_memory
from repa_eval.runtime.seeding import generator

NUM_TRAIN, NUM_VAL, NUM_TEST = 1197, 240, 360
POOL = 12_000  # augmented training images
REFERENCE = 4_000  # augmented training images that Frechet distances are measured against
TEST_MAX = 12_000
SPLITS = ("train", "reference", "val", "test", "trainval", "test-large")


@data("digits", held_out="test-large", measured=600)
def load(rest: str, split: str) -> Images:
    """Return a split of the embedded digits; nothing follows the colon.

    train: 12,000 augmented images; reference: the first 4,000 of them. val (240), test (360) and trainval (the 1,437
    that the embedded teacher and judge learn from) are untouched digits. test-large: the test digits, then fixed
    augmentations of them, for measures that need more than 360 images.
    """
    if rest:
        raise UserError(f"data 'digits' takes no name after the colon (given: {rest!r})")
    return _load(split)


@functools.cache
def _load(split: str) -> Images:
    from repa_eval.data.readers.dataset_rows import open_rows

    return in_memory(open_rows(as_dataset(split), name="digits", split=split))


@functools.cache
def as_dataset(split: str) -> Any:
    """Return a split as a `datasets.Dataset` with columns image and label."""
    import datasets

    images, labels = _arrays(split)
    features = datasets.Features(
        {"image": datasets.Array2D((8, 8), "uint8"), "label": datasets.ClassLabel(names=[str(i) for i in range(10)])}
    )
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features).with_format("numpy")


def _arrays(split: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    pixels, labels = _originals()
    order = np.random.RandomState(0).permutation(len(pixels))
    train, val, test = np.split(order, [NUM_TRAIN, NUM_TRAIN + NUM_VAL])
    if split == "train":
        return _pool(pixels[train], labels[train], POOL, "train")
    if split == "reference":
        images, classes = _pool(pixels[train], labels[train], POOL, "train")
        return images[:REFERENCE], classes[:REFERENCE]
    if split == "test-large":
        images, classes = _pool(pixels[test], labels[test], TEST_MAX - NUM_TEST, "test")
        return np.concatenate([pixels[test], images]), np.concatenate([labels[test], classes])
    plain = {"val": val, "test": test, "trainval": np.concatenate([train, val])}
    if split not in plain:
        raise UnknownSplitError(f"data digits has no split {split!r}; choose one of {', '.join(SPLITS)}")
    return pixels[plain[split]], labels[plain[split]]


@functools.cache
def _originals() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the digits as uint8 (1797, 8, 8) and their classes; the scan's 0..16 becomes 0..255."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.round(bunch.images * (255 / 16)).astype(np.uint8), bunch.target.astype(np.int64)


def _pool(
    pixels: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], count: int, stream: str
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return `count` fixed augmentations; image i shows digit i modulo the number of digits."""
    gen = generator(0, "digits", stream)
    which = np.arange(count) % len(pixels)
    floats = torch.from_numpy(pixels[which]).float()[:, None]
    moved = affine(floats, Affine(zoom=0.12, shift=0.7, rotation=0.2, shear=0.15), gen)
    return moved[:, 0].round().clamp(0, 255).to(torch.uint8).numpy(), labels[which]


class Affine:
    """Ranges of a random affine map: zoom U(1-z, 1+z), shift U(-s, s) pixels, rotation and shear U(-r, r) radians."""

    def __init__(self, *, zoom: float, shift: float, rotation: float, shear: float, aspect: float = 0.0) -> None:
        self.zoom, self.shift, self.rotation, self.shear, self.aspect = zoom, shift, rotation, shear, aspect

    def draw(self, count: int, gen: torch.Generator) -> Tensor:
        """Return `count` uniform draws in [-1, 1), (count, 6): zoom, shift x, shift y, rotation, shear, aspect."""
        return torch.rand(count, 6, generator=gen) * 2 - 1

    def matrices(self, draws: Tensor, side: int) -> Tensor:
        """Return (N, 2, 3) maps from output to input coordinates in [-1, 1] for draws (N, 6)."""
        zoom = 1 + self.zoom * draws[:, 0]
        aspect = 1 + self.aspect * draws[:, 5]
        angle, shear = self.rotation * draws[:, 3], self.shear * draws[:, 4]
        cos, sin = angle.cos(), angle.sin()
        shift = self.shift * draws[:, 1:3] * (2 / side)
        top = torch.stack([cos / (zoom * aspect), (shear * cos - sin) / zoom, shift[:, 0]], dim=1)
        bottom = torch.stack([sin / (zoom * aspect), (shear * sin + cos) / zoom, shift[:, 1]], dim=1)
        return torch.stack([top, bottom], dim=1)

    def apply(self, images: Tensor, draws: Tensor, *, fill: float = 0.0) -> Tensor:
        """Return images (N, C, S, S) resampled once, bilinearly; outside the frame lies `fill`."""
        grid = F.affine_grid(self.matrices(draws, images.shape[-1]), list(images.shape), align_corners=False)
        return F.grid_sample(images - fill, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + fill


def affine(images: Tensor, ranges: Affine, gen: torch.Generator) -> Tensor:
    """Return images (N, C, S, S) moved by random affine maps."""
    return ranges.apply(images, ranges.draw(len(images), gen))
