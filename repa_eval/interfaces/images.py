"""What a data set is to the rest: labelled uint8 images by index, a content hash, and the space the model works in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from repa_eval.errors import UserError
from repa_eval.registry import Registry


class ImageSource(Protocol):
    """Images that can be fetched by index."""

    @property
    def name(self) -> str:
        """What the user called it."""

    def __len__(self) -> int: ...

    def fetch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return (images uint8 (B, C, H, W), labels int64 (B,)) at `indices`."""

    def digest(self) -> str:
        """Return a short hash of the content."""


@dataclass(frozen=True)
class Images:
    """A split held in memory: images uint8 (N, C, H, W), labels int64 (N,)."""

    name: str
    split: str
    images: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]
    num_classes: int
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def fetch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return (images uint8 (B, C, H, W), labels int64 (B,)) at `indices`."""
        rows = np.asarray(indices, dtype=np.int64)
        return torch.from_numpy(self.images[rows]), torch.from_numpy(self.labels[rows])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def head(self, count: int) -> Images:
        """Return the first `count` images; UserError if there are fewer."""
        if count > len(self):
            raise UserError(f"{self.name}:{self.split} has {len(self)} images; {count} were asked for")
        return self.part(0, count)

    def part(self, first: int, stop: int) -> Images:
        """Return the images first..stop-1."""
        images, labels = self.images[first:stop], self.labels[first:stop]
        return Images(self.name, self.split, images, labels, self.num_classes, self.class_names)

    def digest(self) -> str:
        """Return the first 12 hex digits of the sha256 of shape, pixels and labels."""
        content = hashlib.sha256(repr(self.images.shape).encode())
        content.update(np.ascontiguousarray(self.images).tobytes())
        content.update(np.ascontiguousarray(self.labels).tobytes())
        return content.hexdigest()[:12]


# a loader takes what follows the colon of `kind:rest` and the split ("train", "reference", "val", "test")
Loader = Callable[[str, str], Images]
DATA: Registry[Loader] = Registry("data", "repa_eval.data")


def data(name: str) -> Callable[[Loader], Loader]:
    """Register a loader of one data layout."""
    return DATA.register(name)


def load_data(spec: str, split: str) -> Images:
    """Return a split of the data named by `spec`: "digits" or "hf:NAME"."""
    kind, _, rest = spec.partition(":")
    return DATA.get(kind)(rest, split)


def to_signed(images: Tensor) -> Tensor:
    """Return float32 images in [-1, 1] from uint8 ones."""
    return images.float() / 127.5 - 1.0


def to_uint8(x: Tensor, rule: str) -> Tensor:
    """Return uint8 images from floats in [-1, 1].

    rule: "floor" as REPA and REG save samples, 255 (x + 1) / 2 truncated; "round" as DiT, SiT and LightningDiT do,
    127.5 x + 128 truncated. They differ by half a grey level, which Frechet distances notice.
    """
    if rule == "floor":
        return (255.0 * (x + 1) / 2.0).clamp(0, 255).to(torch.uint8)
    if rule == "round":
        return (127.5 * x + 128.0).clamp(0, 255).to(torch.uint8)
    raise UserError(f"uint8 rule {rule!r} is not known; choose floor or round")


def unseen_images(data: str, count: int) -> Images:
    """Return images that training never saw."""
    return load_data(data, unseen_split(data)).head(count)


def unseen_split(data: str) -> str:
    """Return the split of images that training never saw: the embedded one has a large version."""
    return "test-large" if data == "digits" else "test"
