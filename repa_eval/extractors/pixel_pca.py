"""A judge without a network: the pixels on the reference's first 32 principal components.

A second opinion beside a learned judge. It sees early progress and saturates later.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from repa_eval.errors import UserError
from repa_eval.interfaces.extractor import Array, Extractor, Features, extractor
from repa_eval.interfaces.image_source import ImageSource, chunks
from repa_eval.metrics.shared.moments import Moments

COMPONENTS = 32
AT_ONCE = 1 << 25  # values of images that are held in memory
WIDE, SIDE = 4096, 32  # images of more values are averaged to this side


class PixelPCA(Extractor):
    """min(32, C H W) principal components of pixels in [0, 1]; images of more than WIDE values are averaged first."""

    name = "pixel_pca"
    has_logits = False

    def __init__(self) -> None:
        self.digest = "unfitted"
        self._mean: Array | None = None
        self._basis: Array | None = None

    def prepare(self, reference: ImageSource) -> None:
        """Take the components from the reference's images."""
        self.resize = "none" if math.prod(reference.shape) <= WIDE else f"area means, {SIDE}x{SIDE}"
        self._mean, covariance = self._moments(reference)
        _, vectors = np.linalg.eigh(covariance)
        basis = vectors[:, ::-1][:, :COMPONENTS]
        # eigenvectors come with either sign; fix it, so that features and hash are the same everywhere
        self._basis = basis * np.sign(basis[np.abs(basis).argmax(0), np.arange(basis.shape[1])])
        self.digest = hashlib.sha256(np.round(self._basis, 4).tobytes()).hexdigest()[:12]

    def _moments(self, reference: ImageSource) -> tuple[Array, Array]:
        """Return mean (D,) and covariance (D, D); of many images in batches, so that they are not all in memory."""
        if len(reference) * math.prod(reference.shape) <= AT_ONCE:
            pixels = self._pixels(reference.pixels(range(len(reference))))
            return pixels.mean(0), np.cov(pixels, rowvar=False)
        streamed = Moments()
        for rows in chunks(len(reference)):
            streamed.update(self._pixels(reference.pixels(rows)))
        return streamed.mean, streamed.covariance

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
        if images[0].numel() > WIDE:  # a covariance of every value of a large image would not fit into memory
            images = F.interpolate(images.float(), size=(SIDE, SIDE), mode="area")
        pixels: Array = images.flatten(1).numpy().astype(np.float64) / 255
        return pixels


@extractor("pixel_pca")
def pixel_pca(weights: Path | None) -> Extractor:
    """Return the unfitted projection."""
    if weights is not None:
        raise UserError("extractor pixel_pca has no weights; leave --extractor-weights out")
    return PixelPCA()
