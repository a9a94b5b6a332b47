"""Images from the word of a user: a path, or the name of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from repa_eval.errors import UserError


def open_named(name: str, *, split: str, resize: int | None = None, what: str = "") -> Any:
    """Return the images of a folder, .zip or .npz, or of a split of a data set by name; UserError if it is neither.

    resize: the side in pixels to which image files are cropped; what: stands before the name in the error.
    """
    from repa_eval.data.readers.image_files import open_images
    from repa_eval.interfaces.images import layout_at, load_data

    if Path(name).exists():
        layout = layout_at(name)
        if layout is None or layout.general:
            return open_images(name, resize=resize)
        if resize is not None:
            raise UserError(f"{name} is a data set with images of its own size; only image files can be resized")
        return layout.build(name, split)
    check_name(name, what)
    return load_data(name, split)


def check_name(name: str, what: str = "") -> None:
    """UserError unless `name` is that of a data set."""
    from repa_eval.interfaces.images import DATA

    if name.partition(":")[0] not in DATA.names():
        subject = f"{what} {name!r}".strip()
        raise UserError(f"{subject} is not a folder, .zip, .npz or data set ({', '.join(DATA.names())})")
