"""`repa:PATH`: images and moments of latents in the layout of REPA's trainer, which `repa-eval prepare` writes.

PATH holds images/ and vae-sd/, or images.zip and vae-sd.zip, or is one of them; each has a dataset.json.
"""

from __future__ import annotations

from pathlib import Path

from repa_eval.data.readers.image_members import ImageMembers
from repa_eval.data.readers.joined import Joined
from repa_eval.data.readers.listing import SUFFIXES, printable
from repa_eval.data.readers.members import ARRAYS
from repa_eval.data.readers.moment_members import MomentMembers
from repa_eval.data.readers.repa_layout import (
    files_of,
    halves,
    is_repa,
    labels_of,
    record_of,
    refuse_other_numbers,
)
from repa_eval.errors import UserError
from repa_eval.interfaces.image_source import ImageSource, Subset
from repa_eval.interfaces.images import data


@data("repa", recognises=is_repa, resizes=True)
def load(rest: str, split: str, *, resolution: int | None = None) -> ImageSource:
    """Images, moments and labels as REPA's trainer reads them; it has no splits: every split is all of it."""
    path = Path(rest)
    name = f"repa:{printable(path)}"
    images, moments = halves(path)
    pictures = [] if images is None else files_of(images, SUFFIXES)
    if moments is None:
        assert images is not None
        source = ImageMembers(images, pictures, labels_of(images, pictures, path), resize=resolution)
        return Subset(source, range(len(source)), name=name)
    arrays = files_of(moments, ARRAYS)
    labels, record = labels_of(moments, arrays, path), record_of(path)
    refuse_other_numbers(pictures or arrays, arrays, path)
    latents = MomentMembers(moments, arrays, labels)
    latents.latent_record = {key: record[key] for key in ("vae", "vae_hash") if isinstance(record.get(key), str)}
    if images is None:
        _refuse_resizing(resolution, None, path)
        return Subset(latents, range(len(latents)), name=name)
    whole = ImageMembers(images, pictures, advice="")
    _refuse_resizing(resolution, whole.shape[1:], path)
    return Joined(name, whole, latents)


def _refuse_resizing(resolution: int | None, size: tuple[int, ...] | None, path: Path) -> None:
    """UserError where the images that latents were made of would be resized."""
    if resolution is not None and size != (resolution, resolution):
        images = "images" if size is None else f"images of {size[1]}x{size[0]}"
        raise UserError(
            f"{printable(path)}: the latents are of {images}, and stay so; leave --resolution {resolution} out, or "
            "name the images alone"
        )
