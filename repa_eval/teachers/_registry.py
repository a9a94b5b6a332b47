"""Frozen vision encoders. Each owns its preprocessing: uint8 images in, patch tokens out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from repa_eval.errors import UserError
from repa_eval.registry import Registry


@dataclass(frozen=True)
class Tokens:
    """What a teacher says of a batch: patches (B, T, D), T = grid^2 row by row, and the class token (B, D) if any."""

    patches: Tensor
    cls: Tensor | None = None


class Teacher(nn.Module, ABC):
    """A frozen encoder. name: as given by the user; width: D; digest: hash of its weights."""

    name: str
    width: int
    digest: str

    @abstractmethod
    def forward(self, images: Tensor) -> Tokens:
        """Return Tokens for uint8 images (B, C, H, W) of any size that the encoder takes."""

    def freeze(self) -> Teacher:
        """Return the teacher in eval mode without gradients."""
        return self.eval().requires_grad_(False)


Builder = Callable[[str, Path | None], Teacher]
TEACHERS: Registry[Builder] = Registry("teacher", "repa_eval.teachers", group="repa_eval.teachers")


def teacher(name: str) -> Callable[[Builder], Builder]:
    """Register a builder: (name, file of weights or None) -> Teacher."""
    return TEACHERS.register(name)


def load_teacher(name: str, weights: str | Path | None = None) -> Teacher:
    """Return the frozen teacher called `name`; `weights` is a file that replaces its own."""
    path = None if weights is None else Path(weights)
    if path is not None and not path.is_file():
        raise UserError(f"teacher weights {str(weights)!r} do not exist")
    return TEACHERS.get(name)(name, path).freeze()


def split_names(enc_type: str) -> list[str]:
    """Return the teachers named by "a,b"; none for "" and "None"."""
    return [part.strip() for part in enc_type.split(",") if part.strip() and part.strip().lower() != "none"]
