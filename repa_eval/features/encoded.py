"""Images with their latents by a VAE, encoded as they are asked for; what is encoded once is kept on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from repa_eval.errors import UserError
from repa_eval.features.store import Entry
from repa_eval.interfaces.image_source import DEFAULT_KINDS, ImageSource, LatentScale, Samples, Shape

BLOCK = 16  # images that are encoded together: always the same, so that no rounding depends on who asks
NAME = "latents"


class Encoder(Protocol):
    """What makes latents of images, such as `sampling.vae.VaeEncoder`.

    kind: "moments" of a posterior, or "latents"; digest: hash of its weights; scale: how a model reads its latents.
    """

    kind: str
    digest: str
    scale: LatentScale

    def latent_shape(self, shape: Shape) -> Shape:
        """Return (c, h, w) of a latent of images (C, H, W); UserError for images that it cannot encode."""

    def __call__(self, images: Tensor) -> Tensor:
        """Return moments (B, 2c, h, w) or latents (B, c, h, w), float32 on the CPU, of uint8 images (B, C, H, W)."""

    def record(self) -> dict[str, object]:
        """Return the protocol entries."""


def encode_images(
    source: ImageSource, encoder: Encoder, *, cache: Path | None = None, check_scale: bool = True
) -> ImageSource:
    """Return a source with latents: the data's own where it holds some, which must fit the encoder, else encoded ones.

    check_scale: also compare the scale that the data says with the encoder's. UserError where they do not fit.
    """
    if source.latent_shape is None:
        return EncodedImages(source, encoder, cache=cache)
    expected = None if source.image_shape is None else encoder.latent_shape(source.image_shape)
    if expected is not None and expected != source.latent_shape:
        given, wanted = ("x".join(map(str, shape)) for shape in (source.latent_shape, expected))
        raise UserError(
            f"the latents of {source.name} are {given}, those of this VAE {wanted}: they are another VAE's; leave "
            "--vae out to use them"
        )
    said = source.latent_scale
    if check_scale and said != LatentScale() and not _alike(said, encoder.scale):
        raise UserError(
            f"data {source.name} scales its latents by {_shown(said)}, this VAE by {_shown(encoder.scale)}: leave "
            "--vae out to use the data's, or say the scale with --latent-scale"
        )
    return source


def _alike(first: LatentScale, second: LatentScale) -> bool:
    """Return whether two scales are the same but for rounding."""
    pairs = ((first.scale, second.scale), (first.shift, second.shift))
    return all(len(a) == len(b) and np.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in pairs)


def _shown(scale: LatentScale) -> str:
    shift = f" after a shift of {scale.shift[0]:.4g}" if any(scale.shift) else ""
    return f"{scale.scale[0]:.4g}{' ...' if len(scale.scale) > 1 else ''}{shift}"


class EncodedImages(ImageSource):
    """The images of `source` and, by `encoder`, their latents or the moments of these.

    cache: the folder in which latents outlive an interruption, and several calls and processes share them; None for a
    temporary one. They are found there by the encoder's weights, the content of the source and the index.
    """

    def __init__(self, source: ImageSource, encoder: Encoder, *, cache: Path | None = None) -> None:
        source.require("images")
        self.source, self.encoder, self.cache = source, encoder, cache
        self.name, self.split, self.split_known = source.name, source.split, source.split_known
        self.num_classes, self.class_names = source.num_classes, source.class_names
        self.gives = source.gives - {"latents", "moments"} | {encoder.kind}
        self.image_shape, self.feature_width = source.image_shape, source.feature_width
        self.latent_shape = encoder.latent_shape(source.shape)
        self.latent_scale, self.latent_record = encoder.scale, encoder.record()

    def __len__(self) -> int:
        return len(self.source)

    def fetch(self, indices: Sequence[int], kinds: Collection[str] = DEFAULT_KINDS) -> Samples:
        """Return the samples at `indices`; the blocks of images that lack latents are encoded."""
        others = [kind for kind in kinds if kind in self.source.gives and kind not in ("latents", "moments")]
        found = self.source.fetch(indices, others) if others else Samples()
        if self.encoder.kind not in kinds:
            return found
        held: dict[str, Any] = {kind: getattr(found, kind) for kind in others}
        return Samples(**{**held, self.encoder.kind: self._latents(indices)})

    def _latents(self, indices: Sequence[int]) -> Tensor:
        """Return the moments or latents at `indices`, float32."""
        for number in sorted({int(index) // BLOCK for index in indices}):
            block = range(number * BLOCK, min((number + 1) * BLOCK, len(self)))
            if self._entry.lacking([NAME], block):
                self._entry.write(NAME, block, self.encoder(self.source.pixels(block)).numpy())
        return torch.from_numpy(self._entry.rows(NAME, indices))

    @cached_property
    def _entry(self) -> Entry:
        record = {
            "kind": self.encoder.kind,
            "encoder": self.encoder.digest,
            "data_hash": self.source.digest(),
            "num_images": len(self.source),
            "torch": torch.__version__,
        }
        return Entry(self.cache or Path(self._temporary.name), record, len(self.source))

    @cached_property
    def _temporary(self) -> tempfile.TemporaryDirectory[str]:
        """A folder that is deleted with this source."""
        return tempfile.TemporaryDirectory(prefix="repa-eval-latents-")

    def digest(self) -> str:
        """Return the hash of the images' content: the encoder has its own."""
        return self.source.digest()

    def part(self, first: int, stop: int) -> EncodedImages:
        """Return the samples first..stop-1, as many of them as there are."""
        return EncodedImages(self.source.part(first, stop), self.encoder, cache=self.cache)

    def take(self, rows: Iterable[int]) -> EncodedImages:
        """Return the samples at `rows`, in this order."""
        return EncodedImages(self.source.take(rows), self.encoder, cache=self.cache)
