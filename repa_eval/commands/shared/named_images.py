"""Images from the word of a user: a path, or the name of a data set."""

from __future__ import annotations

import os
from typing import Any

from repa_eval.errors import UserError, short_repr


def open_named(name: str, *, split: str, resize: int | None = None, what: str = "", option: str = "--resize") -> Any:
    """Return the images of a folder, .zip or .npz, or of a split of a data set by name; UserError if it is neither.

    resize: the side in pixels to which images are cropped, for data that can do that, and option: what sets it; what:
    stands before the name in the error.
    """
    from repa_eval.data.readers.image_files import open_images
    from repa_eval.interfaces.images import layout_at, load_data

    if not os.path.exists(name):  # also for what is no path at all
        check_name(name, what)
    elif (layout := layout_at(name)) is None or layout.general:
        return open_images(name, resize=resize, advice=f", or add {option} N")
    return load_data(name, split, resolution=resize)


def check_name(name: str, what: str = "") -> None:
    """UserError unless `name` is that of a data set."""
    from repa_eval.interfaces.images import DATA, near_name

    if name.partition(":")[0] not in DATA.names():
        subject = f"{what} {short_repr(name)}".strip()
        raise UserError(
            f"{subject} is not a folder, .zip, .npz or data set ({', '.join(DATA.names())}){near_name(name)}"
        )
