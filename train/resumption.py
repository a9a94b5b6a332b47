"""Where a run starts or goes on: a resumed run equals one that never stopped."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from repa_eval.config import flatten
from repa_eval.errors import Failure, UserError, first_line
from repa_eval.interfaces.method import name_of
from repa_eval.plugin_files.records import recorded_in, refuse_changed
from repa_eval.train import stages, state
from repa_eval.train.moments import load_moments
from repa_eval.train.recipe import DERIVED, Recipe
from repa_eval.train.stages import ResolvedStage, stage_at

# what a resumed run may change without becoming another run; the hashes of plug-ins are compared on their own
FREE_ON_RESUME = frozenset(
    {"checkpoint_every", "log_every", "num_workers", "log_with", "keep", "description", "name", *DERIVED}
)


@dataclass
class Position:
    """The place in a run from which training goes on.

    step: updates made so far. remaining: the stages from that step on, in order. checkpoint: the file of that step,
    None in a fresh run. saved: its content, until `restore` has put it into the objects of the first stage.
    status: of run.json before this call; "done": every measurement up to `step` was taken. notes: lines for the user.
    """

    step: int
    remaining: Sequence[ResolvedStage]
    checkpoint: Path | None = None
    saved: Mapping[str, Any] | None = None
    status: str | None = None
    notes: Sequence[str] = ()

    @property
    def complete(self) -> bool:
        """Whether nothing remains to be trained or measured."""
        return self.checkpoint is not None and self.status == "done" and self.step >= self.remaining[-1].last

    def resumes(self, stage: ResolvedStage) -> bool:
        """Return whether a stage continues from the checkpoint; the others begin afresh."""
        return self.saved is not None and stage is self.remaining[0]

    def restore(
        self, objective: Any, ema: nn.Module, optimizer: Any, scaler: Any = None, *, begin: Callable[[], None]
    ) -> None:
        """Put the checkpoint's state into fresh objects, and free it. objective: has `model` and `extras`.

        begin: gives the fresh model the weights that its stage began with.

        UserError where shapes or names differ, or where moments of the optimiser are missing.
        """
        assert self.saved is not None
        try:
            without = load_moments(optimizer, self.saved["opt"])
            known = not without or self._began_afresh or _began(begin)
            fresh = [parameter.detach().clone() for parameter in without]
            objective.model.load_state_dict(self.saved["model"])
            ema.load_state_dict(self.saved["ema"])
            objective.extras.load_state_dict(self.saved["method"])
            if scaler is not None:
                scaler.load_state_dict(self.saved["rng"]["scaler"])
        except Exception as error:  # whatever torch makes of foreign content
            raise UserError(f"{self.checkpoint} belongs to other settings: {_reason(error)}") from error
        if known and not all(map(torch.equal, fresh, without)):
            raise Failure(f"{self.checkpoint} is damaged: opt lacks moments of parameters that were trained")
        self.saved = None

    @property
    def _began_afresh(self) -> bool:
        """Whether the stage's first weights were those of a fresh model, rather than of a file."""
        return not self.remaining[0].first and not stages.sources_of(self.remaining[0].recipe)


def _began(begin: Callable[[], None]) -> bool:
    """Return whether the weights that a stage began with are still there."""
    try:
        begin()
    except UserError:
        return False
    return True


def open_run(run: Path, recipe: Recipe, *, resume: bool) -> None:
    """UserError if the folder contains something that would be lost."""
    record = state.read_run(run)
    if record is None:
        if run.is_dir() and any(path.name[0] != "." for path in run.iterdir()):
            raise UserError(f"{run} is not empty and holds no run; choose another --out")
        return
    ours = (recipe.name, name_of(recipe.method))
    theirs = (record.get("recipe"), record.get("method"))
    if theirs != ours:
        raise UserError(f"{run} holds another run ({theirs[0]}, method {theirs[1]}); choose another --out")
    if not resume:
        status = record.get("status", "its run.json is lost")
        raise UserError(f"{run} holds this run already ({status}); add --resume or choose another --out")


def position_of(run: Path, stages: Sequence[ResolvedStage], *, allow_changed_plugin: bool = False) -> Position:
    """Return where the run goes on: at its newest good checkpoint, or at step 0.

    UserError if what lies in the folder was trained with other settings, or other code of a plug-in unless that is
    allowed; Failure if there are checkpoints and none of them is good.
    """
    record = state.read_run(run)
    status = (record or {}).get("status")
    notes = [] if record is None or "status" in record else [f"{run}: run.json is lost or damaged, and is written anew"]
    checkpoint, saved, damaged = _newest_good(run)
    if saved is None or checkpoint is None:
        if (recorded := state.read_recipe(run)) is not None:  # killed before its first checkpoint
            refuse_other_plugins(run / "recipe.yaml", recorded, stages[-1].recipe, allowed=allow_changed_plugin)
            notes += refuse_other_settings(run / "recipe.yaml", recorded, stages[-1].recipe)
        return Position(0, stages, status=status, notes=notes)
    step = int(saved["step"])
    if step > stages[-1].last:
        raise UserError(f"{run} is at step {step} already, beyond max_steps {stages[-1].last}")
    current = stage_at(step, stages)
    refuse_other_plugins(checkpoint, saved["recipe"], current.recipe, allowed=allow_changed_plugin)
    notes += refuse_other_settings(checkpoint, saved["recipe"], current.recipe)
    if damaged:
        notes.append(f"{'; '.join(damaged)}; the run goes on from step {step}, {checkpoint.name}")
    return Position(step, stages[stages.index(current) :], checkpoint, saved, status, notes)


def _newest_good(run: Path) -> tuple[Path | None, dict[str, Any] | None, list[str]]:
    """Return the newest checkpoint that can be gone on from, its content, and what is wrong with newer ones.

    (None, None, []) where there is none; Failure if all are damaged.
    """
    wrong: list[str] = []
    for path in reversed(state.checkpoints_of(run)):
        try:
            return path, state.load_good_checkpoint(path), wrong
        except UserError as error:
            wrong.append(str(error))
    if wrong:
        raise Failure(f"{wrong[0]}; no other checkpoint of the run is good; remove them to begin again at step 0")
    return None, None, []


def refuse_other_plugins(path: Path, recorded: Mapping[str, Any], recipe: Recipe, *, allowed: bool) -> None:
    """UserError with both hashes if a run would go on with other code of a plug-in, unless that is allowed."""
    refuse_changed(path, recorded_in(recorded), recipe.plugins(), allowed=allowed)


def refuse_other_settings(path: Path, recorded: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """UserError with both values if a run would go on with settings that make it another run.

    An option that is not recorded, since the run is older, had the value that is its default now. Recorded ones that
    this version does not know are returned in a line for the user: they cannot be compared.
    """
    written, now = flatten(recorded), flatten(recipe.to_dict())
    before = {**flatten(recipe.defaults().to_dict()), **written}
    free = FREE_ON_RESUME if _counts_on_the_end(recipe) else FREE_ON_RESUME | {"max_steps"}
    compared = sorted(key for key in now if key not in free and not key.startswith("evaluation."))
    if changed := [key for key in compared if before.get(key) != now[key]]:
        texts = [f"{key} {reprlib.repr(before.get(key))} (now {reprlib.repr(now[key])})" for key in changed]
        why = "; its schedule depends on max_steps" if "max_steps" in changed else ""
        raise UserError(f"{path} was trained with other settings: {', '.join(texts)}{why}; choose another --out")
    unknown = sorted(key for key in written if key not in now and key.partition(".")[0] not in DERIVED)
    texts = [f"{key} {reprlib.repr(written[key])}" for key in unknown]
    return [f"{path} records options that this version does not have: {', '.join(texts)}"] if texts else []


def _counts_on_the_end(recipe: Recipe) -> bool:
    """Return whether what a step does depends on how many are to come."""
    return recipe.settings.optim.ends or recipe.settings.ema.ends


def _reason(error: Exception) -> str:
    """Return what torch says in the lines below its title, shortened to the first of them."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[1] if len(lines) > 1 and lines[0].endswith(":") else first_line(error)
