"""`repa:PATH`: images and moments of latents in the layout of REPA's trainer, which `repa-eval prepare` writes.

PATH holds images/ and vae-sd/, or images.zip and vae-sd.zip, or is one of them; each has a dataset.json.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from repa_eval.data.readers.dataset_json import LIST, Labels, checked_names, read_labels
from repa_eval.data.readers.image_members import ImageMembers
from repa_eval.data.readers.joined import Joined
from repa_eval.data.readers.listing import SUFFIXES, printable
from repa_eval.data.readers.members import ARRAYS, Members, open_members, zip_names
from repa_eval.data.readers.moment_members import MomentMembers
from repa_eval.errors import UserError
from repa_eval.interfaces.image_source import ImageSource, Subset
from repa_eval.interfaces.images import data
from repa_eval.runtime.files import read_object

IMAGES = ("images", "imagenet_256_vae")  # REPA's name, and REG's
MOMENTS = ("vae-sd",)
RECORD = "prepare.json"  # of `repa-eval prepare`, which knows the names of the classes
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


@data("repa", recognises=is_repa, resizes=True)
def load(rest: str, split: str, *, resolution: int | None = None) -> ImageSource:
    """Images, moments and labels as REPA's trainer reads them; it has no splits: every split is all of it."""
    path = Path(rest)
    name = f"repa:{printable(path)}"
    images, moments = _halves(path)
    pictures = [] if images is None else _files(images, SUFFIXES)
    if moments is None:
        assert images is not None
        source = ImageMembers(images, pictures, _named(read_labels(images, pictures), path), resize=resolution)
        return Subset(source, range(len(source)), name=name)
    arrays = _files(moments, ARRAYS)
    labels, record = _named(read_labels(moments, arrays), path), _record(path)
    _refuse_other_numbers(pictures or arrays, arrays, path)
    latents = MomentMembers(moments, arrays, labels)
    latents.latent_record = {key: record[key] for key in ("vae", "vae_hash") if isinstance(record.get(key), str)}
    if images is None:
        _refuse_resizing(resolution, None, path)
        return Subset(latents, range(len(latents)), name=name)
    whole = ImageMembers(images, pictures)
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


def _halves(path: Path) -> tuple[Members | None, Members | None]:
    """Return the images and the moments that lie at a path, at least one of them."""
    apart = [next((half for name in names if (half := _half(path, name))), None) for names in (IMAGES, MOMENTS)]
    if path.is_dir() and (apart[1] is not None or not (path / LIST).is_file()):
        images, moments = (None if half is None else _unwrapped(open_members(half)) for half in apart)
    else:
        members = _unwrapped(open_members(path))
        whole = members.holds(LIST)
        images, moments = (None if whole else _within(members, names) for names in (IMAGES, MOMENTS))
        if images is None and moments is None:
            images, moments = (members, None) if _files(members, SUFFIXES) else (None, members)
    for found, suffixes, what in ((images, SUFFIXES, "images"), (moments, ARRAYS, "latents (.npy)")):
        if found is not None and not _files(found, suffixes):
            raise UserError(f"{found.name}: no {what}; the layout is images/ and vae-sd/ with a {LIST} in each")
    if images is None and moments is None:
        raise UserError(f"{printable(path)}: expected images/ and vae-sd/, folders or zips, with a {LIST} in each")
    return images, moments


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


def _files(members: Members, suffixes: Collection[str]) -> list[str]:
    return [file for file in members.sizes if PurePosixPath(file).suffix.lower() in suffixes]


def _refuse_other_numbers(images: Sequence[str], moments: Sequence[str], path: Path) -> None:
    """UserError where files are numbered, and the numbers of images and moments are not the same."""
    of_images, of_moments = ({_place(file): file for file in files} for files in (images, moments))
    alike = set(map(_folder, images)) & set(map(_folder, moments))
    if None in of_images or None in of_moments or not alike:
        return
    for found, others, lacks in ((of_images, of_moments, "latent"), (of_moments, of_images, "image")):
        if alone := [file for place, file in found.items() if place not in others]:
            raise UserError(
                f"{printable(path)}: {len(images)} images and {len(moments)} latents; {printable(alone[0])} has no "
                f"{lacks}: add it, or remove the file"
            )


def _place(file: str) -> tuple[str, int] | None:
    number = NUMBER.search(PurePosixPath(file).stem)
    return None if number is None else (_folder(file), int(number[0]))


def _folder(file: str) -> str:
    return PurePosixPath(file).parent.as_posix()


def _named(labels: Labels, path: Path) -> Labels:
    """Return labels with the names of the classes that `repa-eval prepare` has recorded, if it made these data."""
    if labels.names or labels.values is None:
        return labels
    names = checked_names(_record(path).get("class_names"), f"{printable(path)}: {RECORD}")
    return replace(labels, names=names, count=max(labels.count, len(names)))


def _record(path: Path) -> dict[str, Any]:
    """Return what `repa-eval prepare` says of the data at a path, {} for data that it did not make."""
    file = next((folder / RECORD for folder in (path, path.parent) if (folder / RECORD).is_file()), None)
    return {} if file is None else read_object(file)
