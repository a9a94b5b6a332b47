"""The Frechet distance batch by batch: update, merge, compute, reset."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from repa_eval.api.image_arrays import Range, as_uint8
from repa_eval.api.opening import lent
from repa_eval.api.sample_quality import as_extractor
from repa_eval.errors import UserError
from repa_eval.features.model_state import unwrapped
from repa_eval.interfaces.extractor import Extractor, load_extractor
from repa_eval.metrics.fid import frechet_distance
from repa_eval.metrics.shared.moments import Moments
from repa_eval.runtime.device import choose_device


class FrechetDistance:
    """The Frechet distance of two streams of images, `real` and fake; nothing but float64 moments is kept.

    extractor: the name of one, an Extractor, or a network from uint8 images (B, C, H, W) to features (B, D), which is
    left in its own mode. range: (0, 1) or (-1, 1) where the images are floats. device: of an extractor that is named.
    The value equals `repa_eval.metrics.fid.frechet_distance` of the features' means and covariances (ddof 1).
    """

    def __init__(
        self,
        extractor: str | Extractor | nn.Module = "inception",
        *,
        range: Range | None = None,
        device: str = "auto",
    ) -> None:
        self.range = range
        self._network: nn.Module | None = None
        if isinstance(extractor, str):
            self._extractor: Extractor = load_extractor(extractor).to(choose_device(device))
        elif isinstance(extractor, nn.Module):
            self._network = unwrapped(extractor)
            with lent(self._network):
                self._extractor = as_extractor(self._network)
        else:
            self._extractor = extractor
        self._moments = {True: Moments(), False: Moments()}

    @torch.no_grad()
    def update(self, images: NDArray[Any] | Tensor, real: bool) -> None:
        """Add a batch of images (B, C, H, W) or (B, H, W, C) to the real or to the fake ones."""
        pixels = torch.from_numpy(as_uint8(images, range=self.range))
        with lent(*([] if self._network is None else [self._network])):
            self._moments[real].update(self._extractor(pixels).features)

    def merge(self, other: FrechetDistance) -> None:
        """Add all images that another one has seen: of a second process, or of a second part of the data."""
        if self._extractor.digest != other._extractor.digest:
            mine, theirs = (f"{one._extractor.name} {one._extractor.digest}" for one in (self, other))
            raise UserError(f"distances of two extractors cannot be merged: {mine} and {theirs}")
        for real, moments in self._moments.items():
            moments.merge(other._moments[real])

    def compute(self) -> float:
        """Return the distance; UserError unless there are at least two images on either side."""
        for real, moments in self._moments.items():
            if moments.n < 2:
                name = "real" if real else "fake"
                raise UserError(f"{moments.n} {name} images were seen; a distribution needs at least 2")
        real_side, fake = self._moments[True], self._moments[False]
        return frechet_distance(real_side.mean, real_side.covariance, fake.mean, fake.covariance)

    def reset(self, *, real: bool = True, fake: bool = True) -> None:
        """Forget the real images, the fake ones, or both."""
        if real:
            self._moments[True] = Moments()
        if fake:
            self._moments[False] = Moments()

    @property
    def num_images(self) -> tuple[int, int]:
        """Numbers of real and of fake images seen."""
        return self._moments[True].n, self._moments[False].n
