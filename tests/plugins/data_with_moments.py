"""A data layout of your own: 8x8 images for the teacher, 4x4 moments of a made-up autoencoder for the model."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F

from repa_eval.data import load as load_data
from repa_eval.plugins import ImageSource, LatentScale, Samples, data


class Moments(ImageSource):
    """The embedded digits, their four quarters of every 2x2 square as the channels of a latent."""

    gives = frozenset({"images", "moments", "labels"})
    image_shape, latent_shape, latent_scale = (1, 8, 8), (4, 4, 4), LatentScale(scale=(2.0,), shift=(0.5,))

    def __init__(self, split: str) -> None:
        self.name, self.split = "digit-moments", split
        self.digits = load_data("digits", "test" if split == "test" else "val")
        self.num_classes = self.digits.num_classes

    def __len__(self) -> int:
        return len(self.digits)

    def fetch(self, indices: Sequence[int], kinds: Collection[str] = ("images", "labels")) -> Samples:
        """Return the samples; mean and standard deviation of a latent are (4, 4, 4) each."""
        samples = self.digits.fetch(indices, ("images", "labels"))
        mean = F.pixel_unshuffle(samples.pixels / 255, 2)
        moments = torch.cat([mean, torch.full_like(mean, 0.05)], dim=1)  # (B, 8, 4, 4)
        return Samples(images=samples.images, labels=samples.labels, moments=moments)


@data("digit-moments")
def load(rest: str, split: str) -> ImageSource:
    """Embedded digits with moments."""
    return Moments(split)
