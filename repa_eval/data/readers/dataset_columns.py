"""Which columns of a table of `datasets` hold images, labels and captions, and one encoded image of a row."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from repa_eval.data.readers import decode
from repa_eval.errors import UserError, first_line, short_repr

IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp")
LABELS = ("label", "labels", "cls", "fine_label")
CAPTIONS = ("text", "caption", "txt")
MAX_LABEL = 1 << 24  # there may be a class, or a row of a memory bank, for each


@dataclass(frozen=True)
class Columns:
    """The names of the columns, None for what a table lacks. encoded: whether images are files, else arrays.

    class_names: of a label column that has names. array_type: the type that an array column declares.
    """

    image: str
    label: str | None
    caption: str | None
    encoded: bool
    class_names: tuple[str, ...] = ()
    array_type: str | None = None

    @property
    def gives(self) -> frozenset[str]:
        """The kinds of data that the table gives; without a label column all are of class 0."""
        return frozenset({"images", "labels"} | ({"captions"} if self.caption else set()))


def find_columns(name: str, features: Mapping[str, Any] | None) -> Columns:
    """Return the columns by their usual names, else the only column of images; UserError where no images are."""
    import datasets

    if features is None:
        raise UserError(
            f"data {name}: its columns are not known before they are read; save it to disk and name the folder"
        )
    of_images = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    image = next((key for key in IMAGES if key in features), of_images[0] if len(of_images) == 1 else None)
    if image is None:
        raise UserError(f"data {name}: no column 'image' (columns: {', '.join(sorted(features))})")
    label = next((key for key in LABELS if key in features), None)
    texts = [key for key in CAPTIONS if getattr(features.get(key), "dtype", None) in ("string", "large_string")]
    return Columns(
        image=image,
        label=label,
        caption=texts[0] if texts else None,
        encoded=isinstance(features[image], datasets.Image),
        class_names=() if label is None else tuple(getattr(features[label], "names", None) or ()),
        array_type=getattr(features[image], "dtype", None),
    )


def as_stored(dataset: Any, columns: Columns) -> Any:
    """Return a table with its images as the bytes of their files, which are decoded here by one rule for all data."""
    import datasets

    return dataset.cast_column(columns.image, datasets.Image(decode=False)) if columns.encoded else dataset


def encoded_image(value: Any, roots: Sequence[str]) -> bytes:
    """Return the bytes of an image {"bytes", "path"}; Unusable where there is none, or more than any image has.

    roots: folders, or the beginnings of addresses, in which a path may lie; a table may name any file of this machine.
    """
    if not isinstance(value, Mapping) or not (value.get("bytes") or value.get("path")):
        raise decode.Unusable("is missing: the row holds no image", damaged=True)
    data = value.get("bytes") or _of_file(str(value["path"]), roots)
    if len(data) > decode.MAX_BYTES:
        raise decode.Unusable(f"takes {len(data):,} bytes or more, more than an image that can be used")
    return bytes(data)


def _of_file(path: str, roots: Sequence[str]) -> bytes:
    """Return what lies at a path of this machine, or where a data set of the hub has its files."""
    from datasets.utils.file_utils import xopen

    place = path.rpartition("::")[2]  # the archive of "zip://a.png::/data/a.zip"
    if "://" not in place:
        place = os.path.abspath(place)
    if ".." in place.split("/") or not any(place.startswith(root) for root in roots):
        raise decode.Unusable(
            f"is not in the table, which names {short_repr(path)}, and that is no file of this data set"
        )
    try:
        with xopen(path, "rb") as handle:
            return handle.read(decode.MAX_BYTES + 1)  # type: ignore[no-any-return]
    except Exception as error:  # of any file system that fsspec knows
        raise decode.Unusable(f"is not a readable image ({first_line(error)})", damaged=True) from error
