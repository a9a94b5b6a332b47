"""Methods name abilities of networks: which they train, a model of one's own with `repa`, projectors, the schedule."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from helpers import batches_of, run, steps_of, tiny
from repa_eval import checkpoints
from repa_eval.errors import UserError
from repa_eval.interfaces.architecture import MODELS, architectures_for, find_preset
from repa_eval.interfaces.method import METHODS
from repa_eval.interfaces.projector import PROJECTORS
from repa_eval.train import state
from repa_eval.train.alignment import spatially_normalised
from repa_eval.train.alignment_schedule import AlignmentSchedule
from repa_eval.train.methods.vanilla import Vanilla
from repa_eval.train.recipe import read_recipe, resolve

TRAINED = {
    "vanilla": {"SiT", "SiT-ERW", "SiT-down"},
    "repa": {"SiT", "SiT-ERW"},
    "haste": {"SiT", "SiT-ERW"},
    "reg": {"SiT-REG"},
    "urepa": {"SiT-down", "U-DiT"},
    "erw": {"SiT-ERW"},
    "gmem": {"LightningDiT"},
    "softrepa": {"SD3", "MMDiT-text"},
    "t2i": {"SD3", "MMDiT-text"},
    "repavit": {"RePaViT", "RePaConvViT"},
    "ssl": {"ConvViT"},
    "classifier": {"CNN"},
}
PLUGINS = Path(__file__).parent / "plugins"


@pytest.fixture
def own_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model of tests/plugins/register_dit.py, forgotten after the test."""
    MODELS.names()
    monkeypatch.setattr(MODELS, "_objects", dict(MODELS._objects))
    monkeypatch.setattr(MODELS, "_origins", dict(MODELS._origins))
    spec = importlib.util.spec_from_file_location("register_dit_of_a_test", PLUGINS / "register_dit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)


@pytest.mark.parametrize("name", METHODS.names())
def test_what_each_method_trains(name: str) -> None:
    assert set(architectures_for(METHODS.get(name).requires)) == TRAINED[name]


def test_an_ability_that_no_model_has_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Vanilla, "requires", frozenset({"velocity", "class label"}))
    with pytest.raises(UserError, match="unknown ability 'class label'; did you mean 'class labels'"):
        resolve({"method": "vanilla", "model": "SiT-digits/2"})


def test_architectures_show_their_abilities() -> None:
    lightning, _ = find_preset("LightningDiT-digits/2")
    assert lightning.has("snippets")
    assert lightning.has("attention logits")
    assert not lightning.has("velocity")
    assert find_preset("U-DiT-S")[0].has("several grids")
    assert not find_preset("CNN-digits")[0].has("taps")


@pytest.mark.usefixtures("own_model")
@pytest.mark.parametrize("projector", ["mlp", "conv"])
def test_a_model_of_ones_own_trains_with_repa(tmp_path: Path, projector: str) -> None:
    tree = {**read_recipe("digits-repa"), "model": "RegisterDiT-tiny", "architecture": {}}
    small = {"split": "val", "batch_size": 16, "max_steps": 30, "checkpoint_every": 30, "log_every": 1}
    still = {"eval_every": 0, "final_samples": 0, "warmup_steps": 0, "learning_rate": 3e-3}
    recipe = resolve(tree, {"encoder_depth": 1, "projector": projector, **small, **still})
    last = run(recipe, tmp_path / "run")
    heads = {"mlp": "projectors.0.0.weight", "conv": "projectors.0.conv.weight"}
    assert heads[projector] in state.load_checkpoint(last)["method"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    aligned = [row["value"] for row in rows if row["metric"] == "proj_loss"]
    assert aligned[-1] < aligned[0] - 0.05
    opened = checkpoints.load(last)
    assert type(opened.model).__name__ == "RegisterDiT"


@pytest.mark.usefixtures("own_model")
def test_registers_are_not_aligned() -> None:
    tree = {**read_recipe("digits-repa"), "model": "RegisterDiT-tiny", "architecture": {}}
    recipe, objective, images, teachers = steps_of(resolve(tree, {"encoder_depth": 1, "batch_size": 8, "split": "val"}))
    [batch] = batches_of(recipe, images, teachers)
    batch.modules = objective.extras
    terms = recipe.method.losses(objective.model, batch, 0)
    t = batch.draws["time"]
    x_t = recipe.method.interpolant.mix(batch.x, batch.draws["noise"], t)
    dropped = torch.where(batch.draws["drop"] < 0.1, torch.full_like(batch.y, 10), batch.y)
    patches = objective.model(x_t, t, dropped, taps=(1,))[1][1][:, 3:]
    cosine = F.cosine_similarity(objective.extras["projectors"][0](patches), batch.teachers[0], dim=-1).mean()
    torch.testing.assert_close(terms["proj_loss"], -recipe.method.proj_coeff * cosine)


# --- projectors


def test_projectors_are_found_by_name() -> None:
    assert PROJECTORS.modules() == PROJECTORS.names() == ["conv", "mlp"]
    with pytest.raises(UserError, match="unknown projector 'convolution'; did you mean 'conv'"):
        steps_of(tiny("repa", projector="convolution"))


def test_sit_gets_another_projector_in_place_of_its_own() -> None:
    recipe, objective, _, _ = steps_of(tiny("repa", projector="conv"))
    assert recipe.architecture.z_dims == ()
    assert len(objective.model.projectors) == 0
    head = objective.extras["projectors"][0]
    assert head.conv.weight.shape == (96, 32, 3, 3)
    tokens = torch.randn(2, 16, 32)
    moved = tokens.clone()
    moved[:, 5] += 1  # row 1, column 1 of 4 x 4: its neighbours are rows and columns 0..2
    changed = (head(tokens) != head(moved)).any(-1)[0]
    assert changed.nonzero().flatten().tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    with pytest.raises(UserError, match="15 tokens are no square grid"):
        head(tokens[:, :15])


def test_spatial_normalisation() -> None:
    tokens = torch.randn(2, 16, 5) * 3 + 7
    assert spatially_normalised(tokens, 0.0) is tokens
    whole = spatially_normalised(tokens, 1.0)
    torch.testing.assert_close(whole.mean(1), torch.zeros(2, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(whole.std(1), torch.ones(2, 5))
    part = spatially_normalised(tokens, 0.25)
    torch.testing.assert_close(part, (tokens - 0.25 * tokens.mean(1, keepdim=True)) / tokens.std(1, keepdim=True))


# --- the schedule of the alignment


def test_the_course_of_the_alignment() -> None:
    def course(**options: object) -> list[float]:
        schedule = AlignmentSchedule(**options)  # type: ignore[arg-type]
        assert [share > 0 for share in map(schedule.share, range(10))] == [schedule.active(step) for step in range(10)]
        return [schedule.share(step) for step in range(10)]

    assert course() == [1.0] * 10
    assert course(align_until=4) == [1.0] * 4 + [0.0] * 6
    assert course(align_until=4, align_decay="linear") == [1.0, 0.75, 0.5, 0.25] + [0.0] * 6
    assert course(align_until=8, align_decay="linear", align_decay_steps=2) == [1.0] * 7 + [0.5] + [0.0] * 2
    assert course(align_until=4, align_decay="cosine") == pytest.approx(
        [1.0, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5] + [0.0] * 6
    )
    with pytest.raises(UserError, match="align_decay linear: set align_until"):
        AlignmentSchedule(align_decay="linear")


@pytest.mark.parametrize("name", ["repa", "reg", "urepa", "erw", "gmem"])
def test_alignment_stops_where_it_is_told_to(name: str, tmp_path: Path) -> None:
    more = {"stage": "full", "half_life": 10**9} if name == "erw" else {}
    run(tiny(name, align_until=4, align_decay="linear", max_steps=6, **more), tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["metric"] == "proj_loss"] == [1, 2, 3, 4]
    assert len([row for row in rows if row["metric"] == "denoising_loss"]) == 6
    assert json.loads((tmp_path / "run" / "run.json").read_text())["aligned_until"] == 4
    recipe, objective, images, teachers = steps_of(tiny(name, align_until=4, align_decay="linear", **more))
    values = []
    for step in (0, 2):
        [batch] = batches_of(recipe, images, teachers)
        batch.modules = objective.extras
        values.append(recipe.method.losses(objective.model, batch, step)["proj_loss"].mean().item())
    assert values[1] == pytest.approx(values[0] / 2)
