"""A judge without a network: the pixels on the reference's first 32 principal components.

A second opinion beside a learned judge. It sees early progress and saturates later.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from torch import Tensor

from repa_eval.errors import UserError
from repa_eval.interfaces.extractor import Array, Extractor, Features, extractor
from repa_eval.interfaces.images import ImageSource

COMPONENTS = 32


class PixelPCA(Extractor):
    """min(32, C H W) principal components of pixels in [0, 1]."""

    name = "pixel_pca"
    has_logits = False

    def __init__(self) -> None:
        self.digest = "unfitted"
        self._mean: Array | None = None
        self._basis: Array | None = None

    def prepare(self, reference: ImageSource) -> None:
        """Take the components from the reference's images."""
        pixels = self._pixels(reference.fetch(range(len(reference)))[0])
        self._mean = pixels.mean(0)
        _, vectors = np.linalg.eigh(np.cov(pixels, rowvar=False))
        basis = vectors[:, ::-1][:, :COMPONENTS]
        # eigenvectors come with either sign; fix it, so that features and hash are the same everywhere
        self._basis = basis * np.sign(basis[np.abs(basis).argmax(0), np.arange(basis.shape[1])])
        self.digest = hashlib.sha256(np.round(self._basis, 4).tobytes()).hexdigest()[:12]

    def __call__(self, images: Tensor) -> Features:
        """Return (N, 32) features of uint8 images."""
        if self._basis is None or self._mean is None:
            raise UserError("extractor pixel_pca takes its components from images: give a reference that holds images")
        pixels = self._pixels(images)
        if pixels.shape[1] != len(self._basis):
            raise UserError(f"extractor pixel_pca: images of {pixels.shape[1]} values, reference of {len(self._basis)}")
        return Features(((pixels - self._mean) @ self._basis).astype(np.float32))

    @staticmethod
    def _pixels(images: Tensor) -> Array:
        pixels: Array = images.flatten(1).numpy().astype(np.float64) / 255
        return pixels


@extractor("pixel_pca")
def pixel_pca(weights: Path | None) -> Extractor:
    """Return the unfitted projection."""
    if weights is not None:
        raise UserError("extractor pixel_pca has no weights; leave --extractor-weights out")
    return PixelPCA()
