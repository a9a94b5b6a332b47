"""Moments of latents in .npy files, one file a sample: the mean, then what says how wide the posterior is."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from repa_eval.data.readers.dataset_json import UNLABELLED, Labels
from repa_eval.data.readers.members import Members
from repa_eval.data.readers.npy import MAX_BYTES, floats_of
from repa_eval.errors import Failure, UserError
from repa_eval.interfaces.image_source import DEFAULT_KINDS, ImageSource, LatentScale, Samples, content_digest

SD_VAE = LatentScale(scale=(0.18215,), shift=(0.0,))  # of sd-vae-ft-*, in the trainers of REPA and U-ViT


class MomentMembers(ImageSource):
    """The moments in `files` among `members`, in their order: (2c, h, w) each, c means, then c spreads.

    log_variance: the spreads are the logarithms of variances, as in U-ViT's files; they are returned as standard
    deviations, in which REPA's files hold them. Only the first file is looked at when they are opened.
    """

    split, split_known = "all", False
    latent_scale = SD_VAE

    def __init__(
        self, members: Members, files: Sequence[str], labels: Labels = UNLABELLED, *, log_variance: bool = False
    ) -> None:
        self.name, self.files, self.log_variance = members.name, files, log_variance
        self._members, self._labels = members, labels
        self.gives = frozenset({"moments"} if labels.values is None else {"moments", "labels"})
        self.num_classes, self.class_names = labels.count, labels.names
        first = self._read(files[0], members.where(files[0]))
        if first.ndim != 3 or len(first) % 2:
            raise UserError(
                f"{members.where(files[0])} is {_times(first)}; expected the means and deviations of a latent, 8x32x32 "
                "for images of 256x256"
            )
        self._shape = first.shape
        self.latent_shape = (len(first) // 2, *first.shape[1:])

    def __len__(self) -> int:
        return len(self.files)

    def fetch(self, indices: Sequence[int], kinds: Collection[str] = DEFAULT_KINDS) -> Samples:
        """Return moments and labels at `indices`; Failure or UserError for a file that is unlike the first."""
        rows, values = np.asarray(indices, dtype=np.int64), self._labels.values
        labels = None if values is None or "labels" not in kinds else torch.from_numpy(values[rows])
        if "moments" not in kinds:
            return Samples(labels=labels)
        moments = [self._moments(row) for row in rows.tolist()]
        empty = torch.empty((0, *self._shape))
        return Samples(moments=torch.stack(moments) if moments else empty, labels=labels)

    def digest(self) -> str:
        """Return the digest that the same moments have in any other layout."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return content_digest(self)

    def _moments(self, row: int) -> Tensor:
        """Return means and standard deviations (2c, h, w)."""
        where = f"{self._members.where(self.files[row])} (sample {row})"
        values = self._read(self.files[row], where)
        if values.shape != self._shape:
            first = "x".join(map(str, self._shape))
            raise UserError(f"{where} is {_times(values)}, the first {first}: latents of one shape are needed")
        mean, spread = values.chunk(2)
        if self.log_variance:
            return torch.cat([mean, torch.exp(0.5 * spread.clamp(-30.0, 20.0))])
        if bool((spread < 0).any()):
            raise Failure(
                f"{where}: standard deviations below 0; the file may hold log-variances (those of U-ViT's features are "
                "read as coco:PATH)"
            )
        return values

    def _read(self, file: str, where: str) -> Tensor:
        values = floats_of(self._members.read(file, MAX_BYTES), where)
        return values[0] if values.ndim == 4 and len(values) == 1 else values  # some tools keep the batch dimension


def _times(values: Tensor) -> str:
    return "x".join(map(str, values.shape)) or "a single number"
