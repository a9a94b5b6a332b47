"""State of a run: averaged weights, atomic checkpoints of tensors and plain values, and what it is."""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from repa_eval.checkpoints.repa_train import KEYS
from repa_eval.config import load_yaml
from repa_eval.diffusion.model import DiffusionModel
from repa_eval.errors import Failure, UserError, parsing
from repa_eval.models.shared.encoder import Encoder
from repa_eval.runtime.files import atomic_file
from repa_eval.runtime.run_record import read_record
from repa_eval.train import finite
from repa_eval.train.recipe import kept_steps
from repa_eval.weight_files.reading import read_file


def average_of(model: nn.Module) -> nn.Module:
    """Return the copy that will hold the averaged weights, without gradients."""
    return copy.deepcopy(model).eval().requires_grad_(False)


@torch.no_grad()
def update_average(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """ema <- decay ema + (1 - decay) model over every parameter that trains; buffers are copied (REPA, update_ema).

    Frozen ones are equal from the start: averaging would only round them away from that. A model may name endings of
    buffers that belong to the weights (`averaged_buffers`): these are averaged too.
    """
    pairs = zip(ema.parameters(), model.parameters(), strict=True)
    averaged, trained = zip(*((mine, theirs.detach()) for mine, theirs in pairs if theirs.requires_grad), strict=True)
    # multiply, then add: a lerp of float32 loses 26 to 45 % of a change at decay 0.9999
    torch._foreach_mul_(averaged, decay)
    torch._foreach_add_(averaged, trained, alpha=1 - decay)
    averaged_too = model.averaged_buffers if isinstance(model, DiffusionModel | Encoder) else frozenset()
    for (name, mine), theirs in zip(ema.named_buffers(), model.buffers(), strict=True):
        if name.rpartition(".")[2] in averaged_too:
            mine.mul_(decay).add_(theirs, alpha=1 - decay)
        else:
            mine.copy_(theirs)


def checkpoint_path(run: Path, step: int) -> Path:
    """Return RUN/checkpoints/0000100.pt."""
    return run / "checkpoints" / f"{step:07d}.pt"


def checkpoints_of(run: Path) -> list[Path]:
    """Return the checkpoints of a run, the lowest step first; other files, such as 0000060-copy.pt, are left out."""
    named = [path for path in (run / "checkpoints").glob("[0-9]*.pt") if path.stem.isdecimal() and path.is_file()]
    return sorted(
        (path for path in named if path == checkpoint_path(run, int(path.stem))), key=lambda path: int(path.stem)
    )


def latest_checkpoint(run: Path) -> Path | None:
    """Return the checkpoint of the highest step, if there is one."""
    return next(iter(reversed(checkpoints_of(run))), None)


def remove_others(run: Path, keep: str) -> None:
    """Remove the checkpoints of a run that `keep` does not let stay; see `kept_steps`."""
    paths = checkpoints_of(run)
    stay = kept_steps(keep, [int(path.stem) for path in paths])
    for path in paths:
        if int(path.stem) not in stay:
            path.unlink()


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write {model, ema, method, opt, step, rng, recipe}: tensors and plain values, under a temporary name, renamed.

    Tensors go to the disk one by one, without a copy of the whole in memory. The same state gives the same bytes:
    containers are rebuilt and strings interned, since pickle records identity.
    """
    if tuple(state) != KEYS:
        raise AssertionError(f"a checkpoint holds {KEYS}, not {tuple(state)}")
    with atomic_file(path) as file:
        save_into(file, state)


def save_into(file: BinaryIO, state: dict[str, Any]) -> None:
    """Write a state as torch.save does into an open file; OSError where the disk refuses."""
    target: Any = _Target(file)
    try:
        torch.save(_plain(state, set()), target)
    except Exception as error:  # torch hides what the disk said in errors of its own
        if target.refusal is not None:
            raise target.refusal from error
        raise


class _Target:
    """An open file that keeps the error of a write. torch asks it for `write` alone."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.refusal: OSError | None = None

    def write(self, data: Any) -> int:
        """Write bytes, as a file does."""
        try:
            return self.file.write(data)
        except OSError as error:
            self.refusal = error
            raise

    def flush(self) -> None:
        """Hand what is written to the system."""
        self.file.flush()


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return what save_checkpoint wrote; Failure if the file is damaged, UserError if it is another program's."""
    state = read_file(path, mapped=False)
    if not isinstance(state, dict) or not set(KEYS) <= set(state):
        raise UserError(f"{path} is not a checkpoint of repa-train: expected the keys {', '.join(KEYS)}")
    return state


def load_good_checkpoint(path: Path) -> dict[str, Any]:
    """Return a checkpoint that training can go on from; UserError if it is damaged or its weights are not finite."""
    saved = load_checkpoint(path)
    kinds = {"model": dict, "ema": dict, "method": dict, "opt": dict, "rng": dict, "recipe": dict, "step": int}
    for key, kind in kinds.items():
        if not isinstance(saved[key], kind):
            raise Failure(f"{path} is damaged: {key} is {saved[key]!r:.40}")
    if path.stem != f"{saved['step']:07d}":
        raise Failure(f"{path} is damaged: it was saved at step {saved['step']}")
    finite.refuse_saved(saved, f"{path} cannot be resumed from")
    return saved


def read_run(run: Path) -> dict[str, Any] | None:
    """Return run.json or its copy; where both are lost, what recipe.yaml or a checkpoint tells of the run.

    None if the folder holds no run; Failure if run.json is damaged and nothing else is there.
    """
    try:
        record = read_record(run)
    except Failure:
        if (record := _record_of_recipe(run)) is None:
            raise
    return _record_of_recipe(run) if record is None else record


def _record_of_recipe(run: Path) -> dict[str, Any] | None:
    """Return the entries of run.json that follow from the recipe, which recipe.yaml and every checkpoint hold."""
    for recipe in _recorded_recipes(run):
        if isinstance(recipe, dict) and {"name", "method", "model", "systems"} <= set(recipe):
            seed = recipe.get("seed")
            known = {"method": recipe["method"], "max_steps": recipe.get("max_steps"), "seed": seed, "train_seed": seed}
            return {"run": run.resolve().name, "recipe": recipe["name"], **known}
    return None


def _recorded_recipes(run: Path) -> Iterator[Any]:
    with contextlib.suppress(UserError):
        yield read_recipe(run)
    for path in reversed(checkpoints_of(run)):
        with contextlib.suppress(UserError):
            yield load_checkpoint(path)["recipe"]


def read_recipe(run: Path) -> dict[str, Any] | None:
    """Return recipe.yaml, or None if there is none; Failure if it is damaged."""
    file = run / "recipe.yaml"
    if not file.is_file():
        return None
    with parsing(f"{file} is damaged"):
        tree = load_yaml(file.read_bytes())
    return tree if isinstance(tree, dict) else None


def _plain(value: Any, storages: set[int]) -> Any:
    """Return tensors on the CPU and plain values; storages: those that earlier tensors of the file lie in.

    A tensor is copied where it is a part of its storage, or shares it: the file would hold the whole.
    """
    if isinstance(value, Tensor):
        tensor = value.detach().cpu()
        storage = tensor.untyped_storage()
        whole = tensor.is_contiguous() and storage.nbytes() == tensor.nbytes and storage.data_ptr() not in storages
        storages.add(storage.data_ptr())
        return tensor if whole else tensor.clone()
    if isinstance(value, dict):
        return {_plain(key, storages): _plain(item, storages) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, storages) for item in value]
    return sys.intern(value) if isinstance(value, str) else value
