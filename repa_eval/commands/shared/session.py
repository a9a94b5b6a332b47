"""What `align` and `probe` share: the opened checkpoint, where features are kept meanwhile, progress, processes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from repa_eval.commands.shared.checkpoint import block_numbers, class_tokens_of, open_checkpoint, run_columns
from repa_eval.console.options import choose_device, parse_floats
from repa_eval.errors import UserError

if TYPE_CHECKING:
    from repa_eval.features.capture import Capture

F = TypeVar("F", bound=Callable[..., Any])


def caching(function: F) -> F:
    """Add the options that say where features are kept: --cache, --no-cache."""
    function = click.option("--no-cache", is_flag=True, help="features in memory only: nothing to resume")(function)
    return click.option(
        "--cache",
        type=click.Path(file_okay=False, path_type=Path),
        help="keep the features here for later calls; default: the user's cache, until the command has finished",
    )(function)


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

    @property
    def aligned(self) -> int | None:
        """The block that was aligned in training, where the checkpoint says it."""
        return self.opened.option("encoder_depth")  # type: ignore[no-any-return]


@contextmanager
def session(ckpt: str, layers: str, what: str, given: Mapping[str, Any]) -> Iterator[Session]:
    """Yield the Session of a call; an interrupted one finds its features again, a finished one leaves none behind.

    what: the command, whose features are its own.
    """
    import torch
    from tqdm import tqdm

    from repa_eval.config import from_dict
    from repa_eval.diffusion.interpolant import Interpolant
    from repa_eval.features.capture import Capture
    from repa_eval.runtime.distributed import join

    times = parse_floats(given["timesteps"], "--timesteps")
    for t in times:
        if not 0.0 <= t <= 1.0:
            raise UserError(f"timestep {t} is outside [0, 1] (0 = data, 1 = noise)")
    opened = open_checkpoint(ckpt, given)
    numbers = block_numbers(layers, opened)
    share = join(choose_device(given["device"]))
    if given["no_cache"] and share.count > 1:
        raise UserError("several processes exchange their features through the cache; leave --no-cache out")
    folder = None if given["no_cache"] else given["cache"] or _own_folder(what, opened, given)
    with tqdm(desc=what, unit="batch", disable=given["quiet"] or not share.first or None, leave=False) as bar:
        capture = Capture(
            interpolant=from_dict(Interpolant(), opened.option("interpolant") or {}),
            seed=given["seed"],
            pool=given.get("pool", "mean"),
            class_tokens=class_tokens_of(opened, share.device, given["teacher_name"]),
            batch_size=given["batch_size"],
            cache=folder,
            share=share,
            progress=bar.update,
        )
        model = opened.model.to(device=share.device, dtype=getattr(torch, given["dtype"]))
        yield Session(opened, model, share.device, numbers, times, capture, run_columns(opened))
    share.wait()
    if share.first and folder is not None and given["cache"] is None:
        shutil.rmtree(folder, ignore_errors=True)


def _own_folder(what: str, opened: Any, given: Mapping[str, Any]) -> Path:
    """Return the folder of this very call in the user's cache: the same for the same call, for no other."""
    from repa_eval.features.store import default_folder
    from repa_eval.results import protocol_hash

    said = {key: str(value) for key, value in given.items() if key not in ("quiet", "device")}
    return default_folder() / f"{what}-{protocol_hash({**said, 'path': str(opened.path.resolve())})}"
