"""Frozen vision encoders. Each owns its preprocessing: uint8 images in, patch tokens out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from repa_eval.errors import UserError
from repa_eval.interfaces.attention_logits import read_logits
from repa_eval.registry import Registry


@dataclass(frozen=True)
class Tokens:
    """What a teacher says of a batch: patches (B, T, D), T = grid^2 row by row, and the class token (B, D) if any."""

    patches: Tensor
    cls: Tensor | None = None


class Teacher(nn.Module, ABC):
    """A frozen encoder. name: as given by the user; width: D; digest: hash of its weights.

    prefix_tokens: how many tokens stand before the patches inside the network (class token, registers).
    """

    name: str
    width: int
    digest: str
    prefix_tokens: int = 1

    @abstractmethod
    def forward(self, images: Tensor) -> Tokens:
        """Return Tokens for uint8 images (B, C, H, W) of any size that the encoder takes."""

    def attentions(self) -> Sequence[nn.Module]:
        """Return the attention module of each block; none where logits cannot be read from outside."""
        return ()

    def attention(self, layers: Collection[int]) -> AbstractContextManager[dict[int, Tensor]]:
        """Collect attention logits of the forward passes inside the `with`: features and logits in one pass.

        Yields a dict that each forward fills with {layer: (B, heads, T, T)}; layers are numbers of blocks, 1-based.
        UserError for a layer that does not exist and for a teacher without such attention.
        """
        return read_logits(self.attentions(), layers, prefix_tokens=self.prefix_tokens, name=self.name)

    def attention_logits(self, images: Tensor, layers: Collection[int]) -> dict[int, Tensor]:
        """Return {layer: (q head_width^-0.5) k^T, (B, heads, T, T)} for uint8 images, patch tokens only."""
        with self.attention(layers) as logits:
            self(images)
        return logits

    def freeze(self) -> Teacher:
        """Return the teacher in eval mode without gradients."""
        return self.eval().requires_grad_(False)


Builder = Callable[[str, Path | None], Teacher]
FILES = {".pt", ".pth", ".safetensors"}  # a name with such an ending is a file
IN_FOLDERS = ("model.safetensors", "pytorch_model.bin")
OF_FILES = "repavit"  # the teacher that opens a file named as teacher
TEACHERS: Registry[Builder] = Registry("teacher", "repa_eval.teachers", group="repa_eval.teachers")


def teacher(name: str) -> Callable[[Builder], Builder]:
    """Register a builder: (name, file of weights or None) -> Teacher. "kind:NAME" stands for every name so begun."""
    return TEACHERS.register(name)


def load_teacher(name: str, weights: str | Path | None = None) -> Teacher:
    """Return the frozen teacher called `name`; `weights` is a file, or its folder, that replaces its own."""
    path = None if weights is None else _weights_file(Path(weights), name)
    if Path(name).suffix in FILES or (Path(name).is_file() and name not in TEACHERS.names()):
        return _from_file(name, path).freeze()
    teacher: Teacher = TEACHERS.build(registered_name(name), name, path)
    return teacher.freeze()


def _weights_file(path: Path, name: str) -> Path:
    """Return the file of weights: the path, or in a folder the file that transformers and timm save there."""
    if path.is_dir():
        found = next((path / each for each in IN_FOLDERS if (path / each).is_file()), None)
        if found is None:
            raise UserError(f"{path} is a folder without {' or '.join(IN_FOLDERS)}: name the file of {name}")
        return found
    if not path.is_file():
        raise UserError(f"teacher weights {str(path)!r} do not exist; name the file of {name}, or another teacher")
    return path


def registered_name(name: str) -> str:
    """Return the name that the builder of a teacher is registered under: "timm:NAME" for "timm:vit_base"."""
    kind, colon, _ = name.partition(":")
    return f"{kind}:NAME" if colon else name


@dataclass(frozen=True)
class RecordedTeacher:
    """A teacher as a run records it: its name, and the file that replaced its weights, if one did."""

    name: str
    weights: str | None = None

    def load(self) -> Teacher:
        """Return the frozen teacher with these weights; UserError if the file does not exist."""
        return load_teacher(self.name, self.weights)


def recorded_teachers(names: Sequence[str], weights: str | None) -> tuple[RecordedTeacher, ...]:
    """Return the teachers of a run; weights: the file that replaces those of the first."""
    return tuple(RecordedTeacher(name, None if place else weights) for place, name in enumerate(names))


def _from_file(name: str, weights: Path | None) -> Teacher:
    """Return the encoder in the file `name`, called as the file: where the file lies is not a part of a protocol."""
    if not Path(name).is_file():
        raise UserError(f"teacher file {name!r} does not exist")
    if weights is not None:
        raise UserError(f"teacher {name} is a file of weights itself; leave --teacher-weights out")
    return TEACHERS.get(OF_FILES)(Path(name).name, Path(name))


class TeacherClassTokens(nn.Module):
    """What gives uint8 images (B, C, H, W) their clean class tokens (B, D), computed where the teacher is."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher, self.digest = teacher, teacher.digest

    def forward(self, images: Tensor) -> Tensor:
        """Return the class tokens; UserError where the teacher has none."""
        cls = self.teacher(images.to(next(self.teacher.parameters()).device)).cls
        if cls is None:
            raise UserError(f"teacher {self.teacher.name} has no class token, which this model reads")
        return cls

    def record(self) -> dict[str, str]:
        """Return the protocol entries."""
        return {"class_token_teacher": self.teacher.name, "class_token_teacher_hash": self.digest}


def split_names(enc_type: str) -> list[str]:
    """Return the teachers named by "a,b"; none for "" and "None"."""
    return [part.strip() for part in enc_type.split(",") if part.strip() and part.strip().lower() != "none"]
