"""Where the two halves of REPA's layout lie: images/ and vae-sd/, or images.zip and vae-sd.zip, or one of them."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from repa_eval.data.readers.dataset_json import LIST, Labels, checked_names, read_labels
from repa_eval.data.readers.listing import SUFFIXES, printable, suffix_of
from repa_eval.data.readers.members import ARRAYS, Members, open_members, zip_names
from repa_eval.errors import UserError
from repa_eval.runtime.files import read_object

IMAGES = ("images", "imagenet_256_vae")  # REPA's name, and REG's
MOMENTS = ("vae-sd",)
RECORD = "prepare.json"  # of `repa-eval prepare`, which knows the VAE and the names of the classes
NUMBER = re.compile(r"[0-9]+$")


def is_repa(path: Path) -> bool:
    """Return whether images or moments with a dataset.json lie at a path: a folder or a zip."""
    if path.is_dir():
        if (path / LIST).is_file() or any(_half(path, name) is not None for name in MOMENTS):
            return True
        images = next((found for name in IMAGES if (found := _half(path, name)) is not None), None)
        return images is not None and is_repa(images)
    if path.suffix.lower() != ".zip":
        return False
    names = zip_names(path)
    return any(name == LIST or (name.endswith(f"/{LIST}") and name.count("/") == 1) for name in names)


def halves(path: Path) -> tuple[Members | None, Members | None]:
    """Return the images and the moments that lie at a path, at least one of them; UserError where there is neither."""
    apart = [next((half for name in names if (half := _half(path, name))), None) for names in (IMAGES, MOMENTS)]
    if path.is_dir() and (apart[1] is not None or not (path / LIST).is_file()):
        images, moments = (None if half is None else _unwrapped(open_members(half)) for half in apart)
    else:
        members = _unwrapped(open_members(path))
        whole = members.holds(LIST)
        images, moments = (None if whole else _within(members, names) for names in (IMAGES, MOMENTS))
        if images is None and moments is None:
            images, moments = (members, None) if files_of(members, SUFFIXES) else (None, members)
    for found, suffixes, what in ((images, SUFFIXES, "images"), (moments, ARRAYS, "latents (.npy)")):
        if found is not None and not files_of(found, suffixes):
            raise UserError(f"{found.name}: no {what}; the layout is images/ and vae-sd/ with a {LIST} in each")
    if images is None and moments is None:
        raise UserError(f"{printable(path)}: expected images/ and vae-sd/, folders or zips, with a {LIST} in each")
    return images, moments


def files_of(members: Members, suffixes: Collection[str]) -> list[str]:
    """Return the files with one of the suffixes, sorted by path."""
    return [file for file in members.sizes if suffix_of(file) in suffixes]


def labels_of(members: Members, files: Sequence[str], path: Path) -> Labels:
    """Return the labels of `files` by the dataset.json beside them, with the names of classes that `prepare` wrote."""
    labels = read_labels(members, files)
    if labels.names or labels.values is None:
        return labels
    names = checked_names(record_of(path).get("class_names"), f"{printable(path)}: {RECORD}")
    return replace(labels, names=names, count=max(labels.count, len(names)))


def record_of(path: Path) -> dict[str, Any]:
    """Return what `repa-eval prepare` says of the data at a path, {} for data that it did not make."""
    file = next((folder / RECORD for folder in (path, path.parent) if (folder / RECORD).is_file()), None)
    return {} if file is None else read_object(file)


def refuse_other_numbers(images: Sequence[str], moments: Sequence[str], path: Path) -> None:
    """UserError where files are numbered, and the numbers of images and moments are not the same."""
    of_images, of_moments = ({_place(file): file for file in files} for files in (images, moments))
    alike = {folder for folder, _ in filter(None, of_images)} & {folder for folder, _ in filter(None, of_moments)}
    if None in of_images or None in of_moments or not alike:
        return
    for found, others, lacks in ((of_images, of_moments, "latent"), (of_moments, of_images, "image")):
        if alone := [file for place, file in found.items() if place not in others]:
            raise UserError(
                f"{printable(path)}: {len(images)} images and {len(moments)} latents; {printable(alone[0])} has no "
                f"{lacks}: add it, or remove the file"
            )


def _half(path: Path, name: str) -> Path | None:
    """Return the folder or zip called `name` in a folder."""
    if (path / name).is_dir():
        return path / name
    return path / f"{name}.zip" if (path / f"{name}.zip").is_file() else None


def _within(members: Members, names: Sequence[str]) -> Members | None:
    """Return the first of the folders `names` within members that holds files."""
    return next((half for name in names if (half := members.under(name)).sizes), None)


def _unwrapped(members: Members) -> Members:
    """Return what lies in the only folder of a zip that was made of a folder, else everything."""
    tops = {file.partition("/")[0] for file in members.sizes}
    if not members.holds(LIST) and len(tops) == 1 and members.holds(f"{(top := tops.pop())}/{LIST}"):
        return members.under(top)
    return members


def _place(file: str) -> tuple[str, int] | None:
    number = NUMBER.search(posixpath.splitext(file)[0])
    return None if number is None else (_folder(file), int(number[0]))


def _folder(file: str) -> str:
    return file.rpartition("/")[0]
