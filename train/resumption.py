"""Where a run starts or goes on: a resumed run equals one that never stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from repa_eval.config import flatten
from repa_eval.errors import UserError, first_line
from repa_eval.interfaces.method import name_of
from repa_eval.plugin_files.records import recorded_in, refuse_changed
from repa_eval.train import state
from repa_eval.train.recipe import DERIVED, Recipe
from repa_eval.train.stages import ResolvedStage, stage_at

# what a resumed run may change without becoming another run; the hashes of plug-ins are compared on their own
FREE_ON_RESUME = frozenset(
    {"max_steps", "checkpoint_every", "log_every", "num_workers", "log_with", "description", "name", *DERIVED}
)
MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")  # of AdamW


@dataclass
class Position:
    """The place in a run from which training goes on.

    step: updates made so far. remaining: the stages from that step on, in order. checkpoint: the file of that step,
    None in a fresh run. saved: its content, until `restore` has put it into the objects of the first stage.
    status: of run.json before this call; "done": every measurement up to `step` was taken.
    """

    step: int
    remaining: Sequence[ResolvedStage]
    checkpoint: Path | None = None
    saved: Mapping[str, Any] | None = None
    status: str | None = None

    @property
    def complete(self) -> bool:
        """Whether nothing remains to be trained or measured."""
        return self.checkpoint is not None and self.status == "done" and self.step >= self.remaining[-1].last

    def resumes(self, stage: ResolvedStage) -> bool:
        """Return whether a stage continues from the checkpoint; the others begin afresh."""
        return self.saved is not None and stage is self.remaining[0]

    def restore(self, objective: Any, ema: nn.Module, optimizer: Any) -> None:
        """Put the checkpoint's state into fresh objects, and free it. objective: has `model` and `extras`.

        UserError where the shapes or names differ.
        """
        assert self.saved is not None
        try:
            objective.model.load_state_dict(self.saved["model"])
            ema.load_state_dict(self.saved["ema"])
            objective.extras.load_state_dict(self.saved["method"])
            optimizer.load_state_dict(self.saved["opt"])
            _check_moments(optimizer)
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{self.checkpoint} belongs to other settings: {first_line(error)}") from error
        self.saved = None


def _check_moments(optimizer: Any) -> None:
    """ValueError for moments of another shape than their parameter: fused AdamW would write beyond them."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for name, value in optimizer.state.get(parameter, {}).items():
                if name in MOMENTS and value.shape != parameter.shape:
                    shapes = f"{list(value.shape)} of a parameter {list(parameter.shape)}"
                    raise ValueError(f"its optimiser holds {name} {shapes}")


def open_run(run: Path, recipe: Recipe, *, resume: bool) -> Path | None:
    """Return the checkpoint to continue from; UserError if the folder contains something that would be lost."""
    record = state.read_run(run)
    if record is None:
        if run.is_dir() and any(path.name[0] != "." for path in run.iterdir()):
            raise UserError(f"{run} is not empty and holds no run; choose another --out")
        return None
    ours = (recipe.name, name_of(recipe.method))
    theirs = (record.get("recipe"), record.get("method"))
    if theirs != ours:
        raise UserError(f"{run} holds another run ({theirs[0]}, method {theirs[1]}); choose another --out")
    if not resume:
        raise UserError(f"{run} holds this run already ({record.get('status')}); add --resume or choose another --out")
    return state.latest_checkpoint(run)


def position_of(
    run: Path, stages: Sequence[ResolvedStage], checkpoint: Path | None, *, allow_changed_plugin: bool = False
) -> Position:
    """Return where the run goes on: at the checkpoint, or at step 0.

    UserError if what lies in the folder was trained with other settings, or other code of a plug-in unless that is
    allowed; Failure if the checkpoint is damaged.
    """
    status = (state.read_run(run) or {}).get("status")
    if checkpoint is None:
        if (recorded := state.read_recipe(run)) is not None:  # killed before its first checkpoint
            refuse_other_plugins(run / "recipe.yaml", recorded, stages[-1].recipe, allowed=allow_changed_plugin)
            refuse_other_settings(run / "recipe.yaml", recorded, stages[-1].recipe)
        return Position(0, stages, status=status)
    saved = state.load_checkpoint(checkpoint)
    step = int(saved["step"])
    current = stage_at(step, stages)
    refuse_other_plugins(checkpoint, saved["recipe"], current.recipe, allowed=allow_changed_plugin)
    refuse_other_settings(checkpoint, saved["recipe"], current.recipe)
    return Position(step, stages[stages.index(current) :], checkpoint, saved, status)


def refuse_other_plugins(path: Path, recorded: Mapping[str, Any], recipe: Recipe, *, allowed: bool) -> None:
    """UserError with both hashes if a run would go on with other code of a plug-in, unless that is allowed."""
    refuse_changed(path, recorded_in(recorded), recipe.plugins(), allowed=allowed)


def refuse_other_settings(path: Path, recorded: Mapping[str, Any], recipe: Recipe) -> None:
    """UserError if a run would go on with settings that make it another run.

    An option that is not recorded, since the run is older, had the value that is its default now.
    """
    before, now = {**flatten(recipe.defaults().to_dict()), **flatten(recorded)}, flatten(recipe.to_dict())
    changed = sorted(key for key in {*before, *now} - FREE_ON_RESUME if before.get(key) != now.get(key))
    if changed := [key for key in changed if not key.startswith("evaluation.")]:
        raise UserError(f"{path} was trained with other settings: {', '.join(changed)}; choose another --out")
