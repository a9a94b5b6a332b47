"""`folder:PATH`: images in a folder, a zip or an npz, held in memory."""

from __future__ import annotations

from repa_eval.data.readers.image_files import open_images
from repa_eval.data.readers.npz import StreamedImages
from repa_eval.interfaces.images import Images, data


@data("folder")
def load(rest: str, split: str) -> Images:
    """Return the images at `folder:PATH` in memory; every split is the whole folder."""
    source = open_images(rest)
    if isinstance(source, StreamedImages):
        return Images(str(rest), "all", source.images, source.labels, source.num_classes)
    images, labels = source.fetch(range(len(source)))
    names = source.class_names
    return Images(f"folder:{rest}", split, images.numpy(), labels.numpy(), len(names), names)
