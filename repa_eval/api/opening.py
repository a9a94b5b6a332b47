"""Names, paths and objects: whatever a user gives for a model, teachers or images becomes the object."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from repa_eval import checkpoints
from repa_eval.api.image_arrays import images as images_of
from repa_eval.config import from_dict
from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.diffusion.model import DiffusionModel
from repa_eval.errors import UserError
from repa_eval.features.model_state import preserved, unwrapped
from repa_eval.interfaces.checkpoint_layout import Checkpoint
from repa_eval.interfaces.image_source import ImageSource
from repa_eval.interfaces.images import DATA, held_out_split, load_data, measured_head
from repa_eval.interfaces.recorded_names import recorded_data
from repa_eval.interfaces.teacher import RecordedTeacher, Teacher, TeacherClassTokens, load_teacher, split_names
from repa_eval.runtime.device import choose_device

Model = Checkpoint | nn.Module | str | Path
Teachers = Teacher | str | Path | Sequence[Teacher | str | Path]
ImagesLike = ImageSource | NDArray[Any] | Tensor | str | Path


@dataclass(frozen=True)
class OpenedModel:
    """A diffusion model, and the checkpoint that it is from, if it is from one."""

    model: DiffusionModel
    checkpoint: Checkpoint | None = None
    device: str | None = None  # where to compute; None: where the model is

    def recorded(self, key: str) -> Any:
        """Return an option of the method that trained the checkpoint, None if it is not recorded."""
        return None if self.checkpoint is None else self.checkpoint.option(key)

    @property
    def teachers(self) -> tuple[RecordedTeacher, ...]:
        """The teachers that the checkpoint was trained with, if they are recorded."""
        return () if self.checkpoint is None else self.checkpoint.teachers

    @property
    def aligned_layer(self) -> int | None:
        """The block that was aligned in training, if it is recorded."""
        return None if self.checkpoint is None else self.checkpoint.aligned_layer

    @property
    def interpolant(self) -> Interpolant:
        """The path that the model was trained on, the linear one if nothing is recorded."""
        return from_dict(Interpolant(), self.recorded("interpolant") or {})

    @property
    def columns(self) -> dict[str, Any]:
        """The columns that say which checkpoint a row is of."""
        return {} if self.checkpoint is None else self.checkpoint.columns()

    @property
    def data(self) -> str | None:
        """The data that the checkpoint was trained on, if it is recorded."""
        return None if self.checkpoint is None else self.checkpoint.recipe.get("data")


def open_model(model: Model, device: str | None = None) -> OpenedModel:
    """Return the diffusion model meant by a checkpoint, its path, a model or a wrapped model.

    device: where to compute; None for "auto" where a path is given, else for where the model is.
    """
    target = None if device is None else choose_device(device)
    if isinstance(model, str | Path):
        opened = checkpoints.load(model)
        return OpenedModel(opened.diffusion_model, opened, target or choose_device("auto"))
    if isinstance(model, Checkpoint):
        return OpenedModel(model.diffusion_model, model, target)
    if not isinstance(model, nn.Module):
        raise UserError(f"a {type(model).__name__} is no model: give a checkpoint, its path, or a network")
    inner = unwrapped(model)
    if not isinstance(inner, DiffusionModel):
        raise UserError(
            f"{type(inner).__name__} is not one of this package's diffusion models: turn it into one with "
            "repa_eval.wrap, or measure a network without a timestep with repa_eval.align_module"
        )
    return OpenedModel(inner, None, target)


@contextmanager
def lent(*models: nn.Module, device: str | None = None) -> Iterator[None]:
    """Keep models in eval mode, the first of them on `device`; afterwards all are as they were."""
    with ExitStack() as stack:
        for place, model in enumerate(models):
            stack.enter_context(preserved(model, None if place else device))
        yield


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter, the CPU where it has none."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def open_teachers(given: Teachers | None, opened: OpenedModel | None, device: torch.device | str) -> list[Teacher]:
    """Return the teachers; None for those that the checkpoint was trained with, their weight file too.

    What is loaded here is put on `device`; a Teacher stays where it is. UserError if there is none.
    """
    if given is None:
        if opened is None or not opened.teachers:
            raise UserError("no teacher is recorded for this model: name one, such as teacher='digits-vit'")
        return [teacher.load().to(device) for teacher in opened.teachers]
    several = [given] if isinstance(given, nn.Module | str | Path) else list(given)
    found: list[Teacher] = []
    for one in several:
        if isinstance(one, nn.Module):
            inner = unwrapped(one)
            if not isinstance(inner, Teacher):
                raise UserError(f"{type(inner).__name__} is no Teacher: subclass repa_eval.interfaces.teacher.Teacher")
            found.append(inner)
        else:
            found += [load_teacher(name).to(device) for name in split_names(str(one))]
    if not found:
        raise UserError("no teacher is given: name one, such as teacher='digits-vit'")
    return found


def open_images(
    given: ImagesLike | None,
    data: str | None,
    *,
    split: str | None,
    num_images: int | None,
    resolution: int | None = None,
) -> ImageSource:
    """Return the images meant by a data set's name, a path, an array or tensor of uint8, or a source.

    data: the name to use where nothing is given. split: of a named data set; None for images that training never saw.
    num_images: the first so many; None for all, and for up to 10,000 of a named data set (digits: 600). resolution: the
    side in pixels to which the images of a name or path are cropped and resized.
    """
    given = recorded_data(data, "the checkpoint", "images=") if given is None else given
    if given is None:
        raise UserError("the model does not say what it was trained on: name the images, such as images='digits'")
    if isinstance(given, str | Path):
        name = f"folder:{given}" if isinstance(given, Path) and str(given) in DATA.names() else str(given)
        found = load_data(name, split or held_out_split(name), resolution=resolution)
        return measured_head(name, found, num_images)
    if split is not None:
        raise UserError(f"split {split!r}: only the name of a data set has splits; leave it out")
    if resolution is not None:
        raise UserError(f"resolution {resolution}: only images of a name or path are resized; leave it out")
    source = images_of(given) if isinstance(given, np.ndarray | Tensor) else given
    return source if num_images is None else source.head(num_images)


def class_tokens_of(opened: OpenedModel, teachers: Teachers | None) -> Callable[[Tensor], Tensor] | None:
    """Return what gives a model with a class token the clean one of an image, None for other models.

    It is that of the teacher the checkpoint was trained with, which is a Teacher of its name among `teachers` where
    there is one; where none is recorded, of the first of `teachers`.
    """
    if not opened.model.has_class_token:
        return None
    several = [] if teachers is None else [teachers] if isinstance(teachers, nn.Module | str | Path) else list(teachers)
    for one in several:
        if opened.teachers and isinstance(one, Teacher) and one.name == opened.teachers[0].name:
            return TeacherClassTokens(one)
    given = None if opened.teachers else teachers
    return TeacherClassTokens(open_teachers(given, opened, opened.device or device_of(opened.model))[0])
