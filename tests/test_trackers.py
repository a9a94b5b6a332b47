"""The trackers of accelerate: curves and rows of a run, without a change of the run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers import equal_trees, run, tiny
from repa_eval import results
from repa_eval.errors import UserError
from repa_eval.results import Row, make_row
from repa_eval.train import state


def measure(step: int, _model: object) -> Iterator[Row]:
    yield make_row(metric="fd_digits", value=1.5, step=step)
    yield make_row(metric="cknna", value=0.25, step=step, layer=3, timestep=0.1)
    yield make_row(metric="nothing", value=None, step=step, note="no images")


def curves(out: Path) -> dict[str, dict[int, float]]:
    """Metric -> step -> value of log.jsonl."""
    found: dict[str, dict[int, float]] = {}
    for row in results.read(out / "log.jsonl"):
        found.setdefault(row.metric, {})[row.step or 0] = row.value or 0.0
    return found


def test_tensorboard_has_the_curves_and_the_rows(tmp_path: Path) -> None:
    out = tmp_path / "run"
    recipe = tiny(max_steps=4, eval_every=2, log_with="tensorboard")
    run(recipe, out, monitors=[measure])
    [folder] = {file.parent for file in (out / "trackers").rglob("events.*") if file.parent.parent == out / "trackers"}
    events = EventAccumulator(str(folder)).Reload()
    for metric, points in curves(out).items():
        shown = {event.step: event.value for event in events.Scalars(metric)}
        assert shown == pytest.approx(points), metric
    assert [event.value for event in events.Scalars("cknna/layer 3/t 0.1")] == [0.25, 0.25]
    assert "nothing" not in events.Tags()["scalars"]
    assert json.loads((out / "run.json").read_text())["status"] == "done"


def test_a_tracker_changes_nothing(tmp_path: Path) -> None:
    run(tiny(max_steps=3), tmp_path / "a")
    run(tiny(max_steps=3, log_with="tensorboard"), tmp_path / "b")
    assert not (tmp_path / "a" / "trackers").exists()
    a, b = (state.load_checkpoint(tmp_path / name / "checkpoints" / "0000003.pt") for name in "ab")
    assert equal_trees([a[key] for key in state.KEYS[:5]], [b[key] for key in state.KEYS[:5]])


def test_a_resumed_run_may_have_other_trackers(tmp_path: Path) -> None:
    run(tiny(max_steps=3), tmp_path / "run")
    run(tiny(max_steps=6, log_with="tensorboard"), tmp_path / "run", resume=True)
    assert list((tmp_path / "run" / "trackers").rglob("events.*"))


def test_a_tracker_that_cannot_be_used_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="unknown tracker 'tensorbord'; did you mean 'tensorboard'"):
        run(tiny(log_with="tensorbord"), tmp_path / "run")
    monkeypatch.setattr("repa_eval.train.trackers.get_available_trackers", list)
    with pytest.raises(UserError, match="log_with wandb: its package is not installed"):
        run(tiny(log_with="wandb"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
