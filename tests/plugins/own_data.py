"""Data of your own: 8x8 images of one bright spot, made when asked for; the class is the quarter that it lies in."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

import torch

from repa_eval.plugins import ImageSource, Samples, data

SIZES = {"train": 4000, "reference": 1000, "val": 400, "test": 600}


class Spots(ImageSource):
    """Image i of a split is a function of (split, i) alone: nothing is kept in memory."""

    gives = frozenset({"images", "labels"})
    image_shape = (1, 8, 8)
    num_classes = 4

    def __init__(self, split: str) -> None:
        self.name, self.split = "spots", split
        self.first = 10_000 * list(SIZES).index(split)  # no image is in two splits

    def __len__(self) -> int:
        return SIZES[self.split]

    def fetch(self, indices: Sequence[int], kinds: Collection[str] = ("images", "labels")) -> Samples:
        """Return images uint8 (B, 1, 8, 8) and labels (B,)."""
        drawn = [torch.rand(3, generator=torch.Generator().manual_seed(self.first + index)) for index in indices]
        x, y, size = torch.stack(drawn).T[..., None, None]  # (B, 1, 1) each
        rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
        distance = (rows - 7 * y) ** 2 + (columns - 7 * x) ** 2  # (B, 8, 8)
        images = (255 * torch.exp(-distance / (1 + 4 * size))).to(torch.uint8)[:, None]
        labels = (2 * (y > 0.5) + (x > 0.5)).flatten().long()
        return Samples(images=images, labels=labels)

    def digest(self) -> str:
        """Return a hash of what decides the content; hashing all images would make them all."""
        return hashlib.sha256(f"spots {self.split} {len(self)}".encode()).hexdigest()[:12]


@data("spots")
def spots(rest: str, split: str) -> ImageSource:
    """One bright spot on 8x8 pixels; the class is its quarter."""
    return Spots(split)
