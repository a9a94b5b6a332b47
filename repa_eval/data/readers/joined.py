"""Samples of which one source has the images and another the latents."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property

import numpy as np

from repa_eval.errors import UserError
from repa_eval.interfaces.image_source import DEFAULT_KINDS, ImageSource, Samples, content_digest


class Joined(ImageSource):
    """The images of one source, and all else of another; they are paired by their order.

    UserError where their numbers differ, or where both say the classes of samples and do not agree.
    """

    def __init__(self, name: str, images: ImageSource, latents: ImageSource) -> None:
        self.name, self.split, self._images, self._latents = name, latents.split, images, latents
        self.split_known = images.split_known and latents.split_known
        if len(images) != len(latents):
            raise UserError(
                f"{len(images)} images in {images.name} and {len(latents)} latents in {latents.name}: as many are "
                "needed, in the same order"
            )
        self.gives = frozenset({"images"} | latents.gives | (images.gives & {"labels"}))
        of_classes = latents if "labels" in latents.gives else images
        self.num_classes, self.class_names = of_classes.num_classes, of_classes.class_names or images.class_names
        self.image_shape, self.latent_shape = images.image_shape, latents.latent_shape
        self.latent_scale, self.latent_record = latents.latent_scale, dict(latents.latent_record)
        self.feature_width = latents.feature_width

    def __len__(self) -> int:
        return len(self._latents)

    def fetch(self, indices: Sequence[int], kinds: Collection[str] = DEFAULT_KINDS) -> Samples:
        """Return the samples at `indices`."""
        of_latents = [kind for kind in kinds if kind in self._latents.gives]
        of_images = [kind for kind in kinds if kind in self._images.gives and kind not in of_latents]
        found: dict[str, object] = {}
        for source, wanted in ((self._latents, of_latents), (self._images, of_images)):
            if wanted:
                samples = source.fetch(indices, wanted)
                found |= {kind: getattr(samples, kind) for kind in wanted}
        return Samples(**found)  # type: ignore[arg-type]

    def digest(self) -> str:
        """Return the digest that the same samples have in any other layout."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return content_digest(self)


def refuse_other_classes(images: ImageSource, latents: ImageSource) -> None:
    """UserError where images and latents, in the same order, are not of the same classes.

    Nothing is compared where one of them has no classes.
    """
    if not all("labels" in source.gives and source.num_classes > 1 for source in (images, latents)):
        return
    of_images, of_latents = images.all_labels(), latents.all_labels()
    if len(of_images) == len(of_latents) and (differing := np.flatnonzero(of_images != of_latents)).size:
        first = differing[0]
        raise UserError(
            f"sample {first} is of class {of_images[first]} in {images.name} and of class {of_latents[first]} in "
            f"{latents.name} ({len(differing)} differ): these are other images, or images in another order"
        )
