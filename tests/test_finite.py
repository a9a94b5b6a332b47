"""Weights that are no longer numbers are never saved, and never gone on from."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers import run, tiny
from repa_eval.errors import Failure
from repa_eval.train import finite, loop, state
from repa_eval.train.recipe import Recipe

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("value", "found"), [(0.0, False), (NAN, True), (INF, True), (-INF, True)])
def test_one_number_among_many(dtype: torch.dtype, value: float, found: bool) -> None:
    weight = torch.zeros(7, 5, dtype=dtype)
    weight[3, 4] = value
    tensors = {"a": torch.ones(2), "b": weight, "empty": torch.zeros(0), "count": torch.tensor(3)}
    assert finite.unfinite(tensors, weights=tensors) == (["b"] if found else [])


def test_a_mask_may_hold_minus_infinity() -> None:
    mask = torch.full((3, 3), -INF).triu(1)
    assert finite.unfinite({"mask": mask}) == []
    assert finite.unfinite({"mask": mask}, weights={"mask": mask}) == ["mask"]
    assert finite.unfinite({"mask": torch.tensor([NAN, -INF])}) == ["mask"]
    assert finite.unfinite({}) == []


class Spoilt(nn.Linear):
    """One layer, with a buffer that a mask would be."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.register_buffer("mask", torch.tensor(-INF))


@pytest.mark.parametrize("where", ["weights", "average", "method", "optimiser"])
def test_each_kind_is_looked_at(where: str) -> None:
    model, ema, extras = Spoilt(), Spoilt(), Spoilt()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    finite.refuse_weights(3, model, ema, extras, optimizer)
    spoilt: dict[str, Any] = {"weights": model.bias, "average": ema.weight, "method": extras.bias}
    spoilt["optimiser"] = optimizer.state[model.weight]["exp_avg_sq"]
    with torch.no_grad():
        spoilt[where].view(-1)[0] = INF
    with pytest.raises(
        Failure, match=f"step 3: {where} .*not finite, and was not saved; the checkpoints before it are kept"
    ):
        finite.refuse_weights(3, model, ema, extras, optimizer)


# --- in a run


def bad(folder: Path) -> list[str]:
    found = []
    for path in state.checkpoints_of(folder):
        saved = state.load_checkpoint(path)
        tensors = [*saved["model"].values(), *saved["ema"].values()]
        if not all(bool(tensor.isfinite().all()) for tensor in tensors if tensor.is_floating_point()):
            found.append(path.name)
    return found


def record_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return found


WILD = {"learning_rate": 1e38, "warmup_steps": 0}


def test_steps_between_two_points_of_the_curves(tmp_path: Path) -> None:
    recipe = tiny(max_steps=60, checkpoint_every=1, log_every=50, **WILD)
    with pytest.raises(Failure, match=r"step \d+: .* not finite"):
        run(recipe, tmp_path / "run")
    assert bad(tmp_path / "run") == []
    record = record_of(tmp_path / "run")
    assert record["status"] == "failed"
    assert "not finite" in record["reason"]
    before = [path.name for path in state.checkpoints_of(tmp_path / "run")]
    with pytest.raises(Failure, match="not finite"):  # it repeats itself, from the last good weights
        run(recipe, tmp_path / "run", resume=True)
    assert [path.name for path in state.checkpoints_of(tmp_path / "run")] == before


def test_the_last_step(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"step 1: weights .* not finite"):
        run(tiny(max_steps=1, learning_rate=1e39, warmup_steps=0), tmp_path / "run")
    assert state.checkpoints_of(tmp_path / "run") == []
    assert record_of(tmp_path / "run")["status"] == "failed"


@pytest.mark.parametrize("where", ["average", "optimiser"])
def test_weights_are_fine_and_what_goes_with_them_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    update = loop.update

    def spoiling(*given: Any, **more: Any) -> Any:
        answer = update(*given, **more)
        optimizer, ema, step = given[4], given[5], given[3]
        if step == 4:
            moments = next(iter(optimizer.state.values()))["exp_avg_sq"]
            chosen = moments if where == "optimiser" else next(ema.parameters())
            chosen.view(-1)[0] = INF if where == "optimiser" else NAN
        return answer

    monkeypatch.setattr(loop, "update", spoiling)
    with pytest.raises(Failure, match=f"step 5: {where} .* not finite"):
        run(tiny(checkpoint_every=1, log_every=100), tmp_path / "run")
    assert [path.name for path in state.checkpoints_of(tmp_path / "run")] == [
        f"000000{step}.pt" for step in (1, 2, 3, 4)
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    recipe = tiny(checkpoint_every=2)
    run(recipe, tmp_path_factory.mktemp("finite") / "run")
    return recipe, tmp_path_factory.getbasetemp() / "finite0" / "run"


@pytest.mark.parametrize("key", ["model", "ema", "opt"])
def test_nobody_goes_on_from_a_checkpoint_of_an_older_version(
    finished: tuple[Recipe, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    recipe, expected = finished
    shutil.copytree(expected, tmp_path / "run")
    last = state.checkpoint_path(tmp_path / "run", 6)
    saved = state.load_checkpoint(last)
    tensors = saved["opt"]["state"][0] if key == "opt" else saved[key]
    next(tensor for tensor in tensors.values() if tensor.ndim)[0] = NAN
    state.save_checkpoint(last, saved)
    assert run(recipe, tmp_path / "run", resume=True) == last
    assert last.read_bytes() == state.checkpoint_path(expected, 6).read_bytes()
    [told] = caplog.messages
    assert f"0000006.pt cannot be resumed from: {key} " in told
    assert told.endswith("not finite; the run goes on from step 4, 0000004.pt")
