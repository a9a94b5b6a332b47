"""`coco:PATH`: the features of U-ViT's text-to-image experiment, which REPA's reads with images beside them.

For sample i: i.png (optional), i.npy (moments with log-variances), i_0.npy, i_1.npy, ... (features of its captions).
PATH holds train/ and val/, or is one of them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from repa_eval.data.readers.image_members import ImageMembers
from repa_eval.data.readers.listing import SUFFIXES, printable
from repa_eval.data.readers.members import ARRAYS, Members, open_members, zip_names
from repa_eval.data.readers.moment_members import SD_VAE, MomentMembers
from repa_eval.data.readers.npy import MAX_BYTES, floats_of
from repa_eval.errors import UserError
from repa_eval.interfaces.image_source import DEFAULT_KINDS, ImageSource, Samples, content_digest
from repa_eval.interfaces.images import data

FOLDERS = {"train": "train", "reference": "train", "val": "val", "test": "val"}  # by split
NUMBERED = re.compile(r"0|[1-9][0-9]{0,17}")
CAPTION = re.compile(r"(0|[1-9][0-9]{0,17})_0")


def is_coco(path: Path) -> bool:
    """Return whether features of images and captions lie at a path: a folder or a zip."""
    if path.is_dir():
        return any(
            all((path / place / name).is_file() for name in ("0.npy", "0_0.npy")) for place in (".", "train", "val")
        )
    names = zip_names(path) if path.suffix.lower() == ".zip" else frozenset()
    return any({f"{place}0.npy", f"{place}0_0.npy"} <= names for place in ("", "train/", "val/"))


@data("coco", recognises=is_coco)
def load(rest: str, split: str) -> ImageSource:
    """Moments, features of the first caption, and images if they are there, of a split."""
    path = Path(rest)
    members, known = open_members(path), False
    if "0.npy" not in members.sizes:
        folder = FOLDERS.get(split, split)
        there = [name for name in dict.fromkeys(FOLDERS.values()) if members.under(name).sizes]
        if folder not in there:
            found = f"it has {' and '.join(there)}" if there else "expected train/ and val/ with 0.npy, 0_0.npy, ..."
            raise UserError(f"{printable(path)} has no split {split!r}; {found}")
        members, known = members.under(folder), True
    return CaptionedLatents(f"coco:{printable(path)}", split if known else "all", members, split_known=known)


class CaptionedLatents(ImageSource):
    """Samples 0..N-1 of a folder. text: the features of caption 0, of the several that most samples have."""

    latent_scale, num_classes = SD_VAE, 1

    def __init__(self, name: str, split: str, members: Members, *, split_known: bool) -> None:
        self.name, self.split, self.split_known, self._members = name, split, split_known, members
        arrays = {PurePosixPath(file).stem for file in members.sizes if PurePosixPath(file).suffix.lower() in ARRAYS}
        count = sum(NUMBERED.fullmatch(stem) is not None for stem in arrays)
        captioned = sum(CAPTION.fullmatch(stem) is not None for stem in arrays)
        if not count:
            raise UserError(f"{members.name}: no latents (0.npy, 1.npy, ...)")
        wanted = [f"{index}.npy" for index in range(count)] + [
            f"{index}_0.npy" for index in range(max(count, captioned))
        ]
        if missing := [file for file in wanted if file not in members.sizes]:
            raise UserError(
                f"{members.name}: {count} latents and {captioned} first captions; {missing[0]} is missing: samples are "
                "numbered from 0, each with N.npy and N_0.npy"
            )
        self._texts = [f"{index}_0.npy" for index in range(count)]
        self._moments = MomentMembers(members, [f"{index}.npy" for index in range(count)], log_variance=True)
        self._images = self._pictures(count)
        self.latent_shape = self._moments.latent_shape
        self.image_shape = None if self._images is None else self._images.image_shape
        self.gives = frozenset({"moments", "text"} if self._images is None else {"moments", "text", "images"})
        self._text_shape = floats_of(members.read(self._texts[0], MAX_BYTES), members.where(self._texts[0])).shape

    def __len__(self) -> int:
        return len(self._moments)

    def fetch(self, indices: Sequence[int], kinds: Collection[str] = DEFAULT_KINDS) -> Samples:
        """Return the samples at `indices`; Failure or UserError for files that are unlike the first."""
        rows = [int(index) for index in np.asarray(indices, dtype=np.int64)]
        images = self._images.fetch(rows, ("images",)).images if self._images and "images" in kinds else None
        moments = self._moments.fetch(rows, ("moments",)).moments if "moments" in kinds else None
        return Samples(images=images, moments=moments, text=self._text(rows) if "text" in kinds else None)

    def digest(self) -> str:
        """Return the hash of the content."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return content_digest(self)

    def _pictures(self, count: int) -> ImageMembers | None:
        """Return the images, None where there are none at all."""
        by_number = {
            PurePosixPath(file).stem: file
            for file in self._members.sizes
            if PurePosixPath(file).suffix.lower() in SUFFIXES and NUMBERED.fullmatch(PurePosixPath(file).stem)
        }
        if not by_number:
            return None
        lacking = [index for index in range(count) if str(index) not in by_number]
        if lacking or len(by_number) > count:
            which = f"{lacking[0]}.png is missing" if lacking else "some have no latents"
            raise UserError(f"{self._members.name}: {count} latents and {len(by_number)} images; {which}")
        return ImageMembers(self._members, [by_number[str(index)] for index in range(count)])

    def _text(self, rows: Sequence[int]) -> torch.Tensor:
        found = []
        for row in rows:
            where = self._members.where(self._texts[row])
            values = floats_of(self._members.read(self._texts[row], MAX_BYTES), where)
            if values.shape != self._text_shape or values.ndim != 2:
                given, first = (tuple(shape) for shape in (values.shape, self._text_shape))
                raise UserError(f"{where} is {given}, the first {first}; expected (tokens, width), the same for all")
            found.append(values)
        return torch.stack(found) if found else torch.empty((0, *self._text_shape))
