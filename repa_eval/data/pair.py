"""`pair:IMAGES+LATENTS`: the images of one data set with the latents of another, made of the same images."""

from __future__ import annotations

from repa_eval.data.readers.joined import Joined, refuse_other_classes
from repa_eval.data.readers.shards import Shards
from repa_eval.errors import UserError
from repa_eval.interfaces.image_source import ImageSource
from repa_eval.interfaces.images import data, find_layout


@data("pair")
def load(rest: str, split: str) -> ImageSource:
    """Images of one data set and latents of another, in the order of the images."""
    before, plus, after = rest.partition("+")
    if not (before and plus and after) or "+" in after:
        raise UserError(f"pair:{rest}: expected pair:IMAGES+LATENTS, two data sets joined by a +")
    # not by load_data, which would say of both, and of the pair, that they have no splits
    images, latents = (layout.build(part, split) for layout, part in map(find_layout, (before, after)))
    images.require("images")
    if latents.latent_shape is None:
        raise UserError(f"pair:{rest}: data {latents.name} has no latents; write pair:IMAGES+LATENTS, in this order")
    if isinstance(latents, Shards):
        rows = latents.rows_of_images(len(images))
        latents = latents if rows is None else latents.take(rows)
    joined = Joined(f"pair:{rest}", images, latents)
    refuse_other_classes(images, latents)
    return joined
