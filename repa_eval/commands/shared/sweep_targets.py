"""The runs that `sweep` measures: own ones as their recipes say it, and others as the command line does."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repa_eval.commands.shared.checkpoint import data_of, measurable
from repa_eval.commands.shared.foreign_runs import ForeignOptions, foreign_run, record_run
from repa_eval.errors import Failure, UserError
from repa_eval.runtime.claims import Claims
from repa_eval.runtime.run_record import RUNNING, status_of

if TYPE_CHECKING:
    from repa_eval.monitors.shared.foreign import ForeignRun
    from repa_eval.monitors.shared.missing import EvaluatedCheckpoint
    from repa_eval.runtime.distributed import Share

SUFFIXES = frozenset({".pt", ".pth", ".ckpt", ".safetensors"})
_STEPS = (  # a number of seven digits, the number after such a word, a name that is a number
    r"(?<!\d)(\d{7})(?!\d)",
    r"(?:step|steps|iter|iteration|iterations|ckpt|checkpoint)[=_-]?(\d+)(?!\d)",
    r"^(\d+)$",
)


class Target(ABC):
    """A run, and the folder that its rows go to. damaged: checkpoints that cannot be opened, and why."""

    def __init__(self, run: Path, folder: Path, processes: Share) -> None:
        self.run, self.folder, self.processes = run, folder, processes
        self.damaged: dict[Path, str] = {}

    def claims(self) -> Claims:
        """Return what other sweeps of the run may have taken; the folder must exist."""
        return Claims(self.folder)

    def checkpoints(self) -> Iterator[EvaluatedCheckpoint]:
        """Open and yield one checkpoint after another; the first process decides which there are.

        One that is damaged is left out, with a line for the user, and put into `damaged`.
        """
        for path in self.processes.agree(self.paths()):
            try:
                found = self.open(path)
            except Failure as error:
                self._leave_out(path, error)
                continue
            self.damaged.pop(path, None)  # the trainer has written it anew
            if found is not None:
                yield found

    def _leave_out(self, path: Path, error: Failure) -> None:
        if self.processes.first and path not in self.damaged:
            click.echo(f"left out: {error}", err=True)
        self.damaged[path] = str(error)

    def status(self) -> str | None:
        """Return the status of its trainer, see `status_of`."""
        return status_of(self.run)

    @abstractmethod
    def paths(self) -> list[Path]:
        """Return the files of the checkpoints that are to be measured."""

    @abstractmethod
    def open(self, path: Path) -> EvaluatedCheckpoint | None:
        """Return the checkpoint in a file, None where there is nothing to measure; Failure if it is damaged."""


class OwnTarget(Target):
    """A run of `repa-train`, measured as its recipe says. data: as the user names them, None for the recorded ones."""

    def __init__(
        self, run: Path, processes: Share, *, data: str | None, teachers: Sequence[str], keep_samples: int
    ) -> None:
        super().__init__(run, run, processes)
        self.data, self.teachers, self.keep_samples = data, teachers, keep_samples

    def paths(self) -> list[Path]:
        """Return the checkpoints, the lowest step first."""
        from repa_eval.train.state import checkpoints_of

        return checkpoints_of(self.run)

    def open(self, path: Path) -> EvaluatedCheckpoint | None:
        """Return the checkpoint with the run of its stage."""
        from repa_eval import checkpoints
        from repa_eval.monitors.shared.missing import EvaluatedCheckpoint
        from repa_eval.train.evaluated import evaluated_run
        from repa_eval.train.recipe import resolve

        opened = checkpoints.load(path)
        model = measurable(opened)
        recipe = resolve(opened.recipe, {"data": data_of(opened, self.data)})
        how: dict[str, Any] = {"further_teachers": self.teachers, "keep_samples": self.keep_samples}
        run = evaluated_run(recipe, self.folder, self.processes.device, **how, processes=self.processes)
        return EvaluatedCheckpoint(run, opened.step or 0, model)


class ForeignTarget(Target):
    """A run that is measured as the command line says it."""

    def __init__(self, run: Path, folder: Path, processes: Share, options: ForeignOptions, cache: Any) -> None:
        super().__init__(run, folder, processes)
        self.options, self.cache = options, cache
        self.described: ForeignRun | None = None
        self.refusals: list[str] = []  # why no checkpoint could be opened so far
        self._seen: dict[Path, tuple[int, int]] = {}  # files that were measured, by size and time

    def prepare(self) -> bool:
        """Open and check what the run is measured with, by its first good checkpoint; False while there is none."""
        self.refusals = []
        for path in self.processes.agree(self.paths()) if self.described is None else ():
            try:
                opened = self._load(path)
                self._step(opened)
            except Failure as error:
                self.refusals.append(str(error))
                continue
            self.described = foreign_run(opened, self.folder, self.options, self.processes, self.cache)
            if self.processes.first:
                self.folder.mkdir(parents=True, exist_ok=True)
                record_run(self.described, opened, self.run)
            self.processes.wait()
            break
        return self.described is not None

    def paths(self) -> list[Path]:
        """Return the files that were not measured yet, or are others now, by name."""
        folder = checkpoint_folder(self.run)
        files = [file for file in folder.iterdir() if file.suffix in SUFFIXES and file.is_file()]
        return sorted(file for file in files if file.name[0] != "." and self._seen.get(file) != _state(file))

    def open(self, path: Path) -> EvaluatedCheckpoint | None:
        """Return the checkpoint; Failure where it is of another network than the first, or has no step."""
        from repa_eval.monitors.shared.missing import EvaluatedCheckpoint

        if not self.prepare() or self.described is None:
            return None
        state = _state(path)
        opened = self._load(path)
        model, network = measurable(opened), self.described.network
        step = self._step(opened)
        shape = self.described.measured.model_shape
        if (model.depth, tuple(model.image_shape)) != (network.depth, shape):
            raise Failure(f"{path}: it holds another network than the first checkpoint of {self.run}")
        self._seen[path] = state
        return EvaluatedCheckpoint(self.described, step, model)

    def status(self) -> str | None:
        """Return that of an own run, else "running": nobody knows when another trainer ends."""
        return super().status() or RUNNING

    def remeasure(self) -> None:
        """Look at every file again: somebody else had a part of the work."""
        self._seen.clear()

    def _load(self, path: Path) -> Any:
        from repa_eval import checkpoints
        from repa_eval.config import parse_overrides

        loading = self.options.loading
        overrides = parse_overrides(loading.settings)
        try:
            opened = checkpoints.load(path, weights=loading.weights, overrides=overrides, allow_nan=loading.allow_nan)
            measurable(opened)
        except Failure:
            raise
        except UserError as error:  # another kind of file among the checkpoints
            raise Failure(str(error)) from error
        return opened

    def _step(self, opened: Any) -> int:
        """Return the step that a file records, else that of its name; Failure where neither says it."""
        step: int | None = opened.step if opened.step is not None else step_in_name(opened.path.stem)
        if step is None:
            raise Failure(
                f"{opened.path}: neither the file nor its name says its step; call it 0050000{opened.path.suffix}"
            )
        return step


def checkpoint_folder(run: Path) -> Path:
    """Return the folder of a run's checkpoints: RUN/checkpoints, else RUN itself; UserError where there are none."""
    if (run / "checkpoints").is_dir():
        return run / "checkpoints"
    if run.is_dir() and any(file.suffix in SUFFIXES for file in run.iterdir()):
        return run
    raise UserError(f"{run} is no run folder: it holds no checkpoints/")


def is_own(run: Path) -> bool:
    """Return whether a run is one of `repa-train`: by its record or recipe, else by its first checkpoint."""
    from repa_eval import checkpoints
    from repa_eval.train.state import checkpoints_of

    if (run / "run.json").is_file() or (run / "recipe.yaml").is_file():
        return True
    for path in checkpoints_of(run)[:1]:
        try:
            return checkpoints.load(path).layout == "repa-eval"
        except UserError:
            return False
    return False


def step_in_name(stem: str) -> int | None:
    """Return the step in the name of a checkpoint, None where there is none, or where several numbers may be it."""
    for pattern in _STEPS:
        found = set(re.findall(pattern, stem, re.IGNORECASE))
        if len(found) == 1:
            return int(found.pop())
    return None


def _state(file: Path) -> tuple[int, int]:
    state = file.stat()
    return state.st_size, state.st_mtime_ns
