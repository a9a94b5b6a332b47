"""What `align` and `probe` share: the opened checkpoint, where features are kept meanwhile, progress, processes."""

from __future__ import annotations

import errno
import functools
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repa_eval.commands.shared.checkpoint import (
    block_numbers,
    class_token_teacher,
    open_checkpoint,
    run_columns,
    teachers_of,
)
from repa_eval.commands.shared.measured_data import reading_of
from repa_eval.console.option_groups import flag, option_group
from repa_eval.console.options import CheckpointOptions, ComputeOptions, GridOptions, LatentOptions
from repa_eval.errors import UserError, first_line
from repa_eval.runtime.device import choose_device

if TYPE_CHECKING:
    from repa_eval.features.capture import Capture
    from repa_eval.interfaces.image_source import ImageSource
    from repa_eval.runtime.distributed import Share

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """Where the features of a call are kept until it has finished, or longer."""

    folder: Path | None = flag(
        "--cache",
        type=click.Path(file_okay=False, path_type=Path),
        help="keep features in this folder for later calls; default: the user's cache, until the command has finished",
    )
    no_cache: bool = flag(
        "--no-cache",
        is_flag=True,
        help="keep features in memory, or in temporary files where they are many: an interrupted call starts anew",
    )


cache_options = option_group("cache", CacheOptions)


@dataclass(frozen=True)
class SessionOptions:
    """What a call measures, and how. command: its name; own: the options that only this command has."""

    command: str
    checkpoint: CheckpointOptions
    grid: GridOptions
    data: LatentOptions
    cache: CacheOptions
    compute: ComputeOptions
    own: Any
    pool: str = "mean"


@dataclass
class Session:
    """A checkpoint that is being measured over layers and timesteps."""

    opened: Any
    model: Any
    device: str
    layers: list[int]
    times: list[float]
    capture: Capture
    columns: dict[str, Any]
    load: Callable[[Any], Any]  # a RecordedTeacher -> the Teacher on the device, the same for the same

    def teachers(self, grid: GridOptions, images: ImageSource) -> list[Any]:
        """Return the teachers to compare with, on the device: see `teachers_of`.

        Where the data hold a teacher's features and no images, these are the only teacher, under the name of the first.
        """
        from repa_eval.features.given import GivenFeatures, brings_tokens

        recorded = teachers_of(self.opened, grid.teacher_name, grid.weights)
        if not brings_tokens(images) or not recorded:
            return [self.load(each) for each in recorded]
        if grid.weights is not None:
            raise UserError(f"data {images.name} hold a teacher's features and no images: leave --teacher-weights out")
        name = recorded[0].name
        if self.capture.share.first:
            log.warning("%s holds no images: the features in it are taken for those of teacher %s", images.name, name)
        return [GivenFeatures(name, images)]

    def check(self, images: ImageSource) -> None:
        """See that the model can read a source, before anything is computed, and warn of latents of unusual scale."""
        from repa_eval.features.preflight import checked_input, warn_of_scale

        checked_input(self.model, images, self.capture)
        warn_of_scale(self.model, images, self.capture)

    @property
    def aligned(self) -> int | None:
        """The block that was aligned in training, where the checkpoint says it."""
        return self.opened.aligned_layer  # type: ignore[no-any-return]


@contextmanager
def session(options: SessionOptions) -> Iterator[Session]:
    """Yield the Session of a call; an interrupted call reuses its features when repeated, a finished one keeps none."""
    import torch
    from tqdm import tqdm

    from repa_eval.config import from_dict
    from repa_eval.diffusion.interpolant import Interpolant
    from repa_eval.features.capture import Capture
    from repa_eval.interfaces.teacher import TeacherClassTokens
    from repa_eval.runtime.distributed import join

    times, compute, cache = options.grid.times(), options.compute, options.cache
    opened = open_checkpoint(options.checkpoint.ckpt, options.checkpoint)
    numbers = block_numbers(options.grid.layers, opened)
    reading = reading_of(opened, options.data)
    share = join(choose_device(compute.device))
    load = functools.cache(lambda recorded: recorded.load().to(share.device))
    class_teacher = class_token_teacher(opened, options.grid.teacher_name, options.grid.weights)
    if cache.no_cache and share.count > 1:
        raise UserError("several processes exchange their features through the cache; leave --no-cache out")
    folder = None if cache.no_cache else cache.folder or _folder_of_user(opened.path, options, share)
    with tqdm(desc=options.command, unit="batch", disable=compute.quiet or not share.first or None, leave=False) as bar:
        capture = Capture(
            interpolant=from_dict(Interpolant(), opened.option("interpolant") or {}),
            seed=compute.seed,
            pool=options.pool,
            class_tokens=None if class_teacher is None else TeacherClassTokens(load(class_teacher)),
            latents=reading,
            batch_size=compute.batch_size,
            cache=folder,
            share=share,
            progress=bar.update,
        )
        model = opened.model.to(device=share.device, dtype=getattr(torch, options.checkpoint.dtype))
        if share.first and not (model.has_null_label or compute.quiet):
            click.echo("note: this model has no null label: it is given the class of each image", err=True)
        yield Session(opened, model, share.device, numbers, times, capture, run_columns(opened), load)
    share.wait()
    if share.first and folder is not None and cache.folder is None:
        shutil.rmtree(folder, ignore_errors=True)


def _folder_of_user(checkpoint: Path, options: SessionOptions, share: Share) -> Path | None:
    """Return the folder of this call in the user's cache; None, with a warning, where nothing can be written there.

    A container may run for a user without a home, and a home may be read-only: the cache is a help, not a need.
    """
    try:
        folder = _own_folder(checkpoint, options)
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "not writable", str(folder))
    except (OSError, RuntimeError) as error:
        if share.count > 1:
            raise UserError(
                f"several processes exchange their features: name a folder with --cache ({first_line(error)})"
            ) from error
        log.warning("no cache (%s): features are kept in memory; --cache DIR keeps them on disk", first_line(error))
        return None
    return folder


def _own_folder(checkpoint: Path, options: SessionOptions) -> Path:
    """Return the folder of this call in the user's cache: the same call finds it again, another call has another."""
    from repa_eval.features.store import default_folder
    from repa_eval.results import protocol_hash

    chosen = {**asdict(options), "compute": {"seed": options.compute.seed, "batch_size": options.compute.batch_size}}
    chosen["checkpoint"] = {**asdict(options.checkpoint), "ckpt": str(checkpoint.resolve())}
    return default_folder() / f"{options.command}-{protocol_hash({key: str(value) for key, value in chosen.items()})}"
