"""Terms that compare the images of a batch: what gathers is exact on several processes, what does not is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import CPU, run, steps_of, tiny
from repa_eval.errors import UserError
from repa_eval.interfaces.method import METHODS, Batch, Method
from repa_eval.train import batches, stages
from repa_eval.train.methods.vanilla import Vanilla
from repa_eval.train.recipe import Recipe
from repa_eval.train.whole_batch import refuse_coupled_terms

COUPLED = {"ssl": "contrastive_loss"}  # its batch norms see one process's images: gathering would not be enough
NAMES = METHODS.names()


def check(recipe: Recipe, *, method: Method | None = None, steps: tuple[int, ...] = (0, 5), num_parts: int = 1) -> None:
    """What the trainer does before the first step of several processes."""
    recipe, objective, images, teachers = steps_of(recipe)
    if recipe.method.starts_from() is not None:
        [stage] = stages.resolve_stages(recipe, images, teachers)
        stages.begin(stage, Path(), objective.model, images, teachers)
    looked_at = {step: batches.first_batch(4, images, recipe, step, teachers, CPU) for step in steps}
    refuse_coupled_terms(objective.model, objective.extras, method or recipe.method, looked_at, num_parts=num_parts)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in COUPLED])
def test_the_terms_of_a_method_are_means_over_images(name: str) -> None:
    check(tiny(name))
    check(tiny(name), num_parts=2)


@pytest.mark.parametrize(("name", "term"), COUPLED.items())
def test_terms_that_compare_images_are_refused(name: str, term: str) -> None:
    with pytest.raises(UserError, match=f"method {name}: its term {term} is not a mean over images") as caught:
        check(tiny(name))
    assert "\n" not in str(caught.value)


def test_the_published_warm_up_loss_of_erw_is_refused() -> None:
    # it is that of the last image of a batch: of several batches, there are several last ones
    with pytest.raises(UserError, match="its term proj_loss is not a mean over images"):
        check(tiny("erw", stage="warmup", warmup_loss="last-sample"))
    check(tiny("erw", stage="warmup"))


@pytest.mark.parametrize("pairs", ["batch", "sample"])
def test_a_method_that_gathers_is_exact_on_processes_and_refused_on_parts(pairs: str) -> None:
    recipe = tiny("urepa", manifold_pairs=pairs)
    check(recipe)
    with pytest.raises(UserError, match=r"method urepa compares the images of a batch.*set gradient_accumulation=1"):
        check(recipe, num_parts=2)


class Coupled(Vanilla):
    """A penalty on pairs of images; `gathers` says how they are read, `since` from which step on it is there."""

    gathers = True
    since = 0

    def losses(self, model: Any, batch: Batch, step: int) -> dict[str, Tensor]:
        terms = super().losses(model, batch, step)
        if step >= self.since:
            rows = model(batch.x, batch.draws["time"], batch.y, taps=(1,))[1][1].mean(1)  # (B, D)
            others = batch.gather(rows) if self.gathers else rows
            terms["pair_loss"] = torch.exp(-torch.cdist(rows, others).square()).mean()
        return terms


@pytest.mark.parametrize("since", [0, 5])
def test_the_check_sees_a_term_of_a_fresh_model_and_a_late_one(since: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS._objects, "coupled", Coupled)
    monkeypatch.setattr(Coupled, "since", since)
    check(tiny(), method=Coupled())
    monkeypatch.setattr(Coupled, "gathers", False)
    with pytest.raises(UserError, match="method coupled: its term pair_loss is not a mean over images"):
        check(tiny(), method=Coupled())


def test_the_trainer_asks_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"use batch\.gather in losses"):
        run(tiny("ssl", gradient_accumulation=2), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()
    with pytest.raises(UserError, match="set gradient_accumulation=1"):
        run(tiny("urepa", manifold_pairs="batch", gradient_accumulation=2), tmp_path / "other")
    run(tiny("urepa", manifold_pairs="batch"), tmp_path / "whole")


def test_alone_a_batch_is_whole() -> None:
    recipe, _, images, _ = steps_of(tiny())
    [batch] = batches.parts(images.fetch(range(8)), recipe, 0, range(8), [], CPU)
    rows = torch.randn(8, 3)
    assert batch.gather(rows) is rows
    halves = dataclasses.replace(recipe, settings=dataclasses.replace(recipe.settings, gradient_accumulation=2))
    first, _ = batches.parts(images.fetch(range(8)), halves, 0, range(8), [], CPU)
    with pytest.raises(UserError, match="set gradient_accumulation=1"):
        first.gather(rows[:4])
