"""Images among the files of a layout that says itself how many there are, and of which class."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from repa_eval.data.readers import decode
from repa_eval.data.readers.dataset_json import UNLABELLED, Labels
from repa_eval.data.readers.listing import printable
from repa_eval.data.readers.members import Members
from repa_eval.data.readers.pictures import PREPARE, Pictures
from repa_eval.errors import Failure, UserError
from repa_eval.interfaces.image_source import content_digest


class ImageMembers(Pictures):
    """The images `files` among `members`, in their order. resize and advice: see `Pictures.begin`."""

    split, split_known = "all", False

    def __init__(
        self,
        members: Members,
        files: Sequence[str],
        labels: Labels = UNLABELLED,
        *,
        resize: int | None = None,
        advice: str = PREPARE,
    ) -> None:
        self.name, self.files, self._members = members.name, files, members
        self.labels, self.num_classes, self.class_names = labels.values, labels.count, labels.names
        self.gives = frozenset({"images"} if labels.values is None else {"images", "labels"})
        sizes = np.array([members.sizes[file] for file in files], dtype=np.int64)
        self.begin(sizes, resize=resize, advice=advice)

    def digest(self) -> str:
        """Return the digest that the same images have in any other layout."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return content_digest(self)

    def _called(self, index: int) -> str:
        return printable(self.files[index])

    def _read(self, index: int, most: int = decode.MAX_BYTES) -> bytes:
        if self._sizes[index] > decode.MAX_BYTES:
            raise decode.Unusable(f"takes {self._sizes[index]:,} bytes, more than an image that can be used")
        try:
            return self._members.beginning(self.files[index], most)
        except UserError as error:
            reason = str(error).rpartition(" cannot be read: ")[2]
            raise decode.Unusable(f"cannot be read: {reason}", damaged=isinstance(error, Failure)) from error
