"""What commands do with --ckpt: open it, and read off its data, layers and run."""

from __future__ import annotations

from typing import Any

from repa_eval.console.options import LoadingOptions
from repa_eval.errors import UserError


def open_checkpoint(ckpt: str, loading: LoadingOptions) -> Any:
    """Return the Checkpoint in the file, folder or repository `ckpt`, opened as `loading` says."""
    from repa_eval import checkpoints
    from repa_eval.config import parse_overrides

    overrides = parse_overrides(loading.settings)
    return checkpoints.load(ckpt, weights=loading.weights, overrides=overrides, allow_nan=loading.allow_nan)


def measurable(opened: Any) -> Any:
    """Return the opened checkpoint's model; UserError unless it is a diffusion model of the family."""
    return opened.diffusion_model


def data_of(opened: Any, given: str | None) -> str:
    """Return the data to measure on: as given, else as recorded; UserError if neither says it.

    The recorded name counts where it is that of registered data alone (see `recorded_data`).
    """
    from repa_eval.interfaces.recorded_names import recorded_data

    name = given or recorded_data(opened.recipe.get("data"), opened.path, "--data")
    if not name:
        raise UserError(f"{opened.path} does not say what it was trained on: name the images with --data")
    return name


def class_token_teacher(opened: Any, given: str | None, weights: str | None = None) -> Any:
    """Return the RecordedTeacher whose class token the checkpoint's model reads, None where it reads none.

    It is the one that the checkpoint was trained with; where the file names none, the first of `given`.
    weights: a file in place of its weights, unless `given` says that the file is another teacher's.
    """
    from repa_eval.interfaces.teacher import RecordedTeacher, split_names

    if not measurable(opened).has_class_token:
        return None
    named = split_names(given or "")
    if not opened.teachers:
        if not named:
            raise UserError(f"{opened.path} reads a teacher's class token: name the teacher with --teacher")
        return RecordedTeacher(named[0], weights)
    first = opened.teachers[0]
    return RecordedTeacher(first.name, weights) if weights and (not named or first.name in named) else first


def teachers_of(opened: Any, given: str | None, weights: str | None = None) -> tuple[Any, ...]:
    """Return the teachers to compare with: those named, else those that the checkpoint was trained with.

    weights: a file in place of the weights of each that is named, and of the first that is recorded. A recorded
    teacher has the weights that it had in training.
    """
    from repa_eval.interfaces.teacher import RecordedTeacher, split_names

    if given:
        return tuple(RecordedTeacher(name, weights) for name in split_names(given))
    first, *others = opened.teachers or (None,)
    if first is None:
        return ()
    return (RecordedTeacher(first.name, weights or first.weights), *others)


def block_numbers(text: str, opened: Any) -> list[int]:
    """Return the block numbers meant by "all", "3,4", "1-6", or by the names of a network of somebody else's.

    UserError if the checkpoint's model lacks one.
    """
    from repa_eval.diffusion.layers import layer_numbers

    model = measurable(opened)
    return layer_numbers(text, model.depth, aligned=opened.aligned_layer, what="--layer", names=model.layer_names)


def run_columns(opened: Any) -> dict[str, Any]:
    """Return the columns that say which checkpoint a row speaks of."""
    columns: dict[str, Any] = opened.columns()
    return columns
