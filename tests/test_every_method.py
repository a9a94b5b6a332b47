"""Properties that every training method must have; a new file in train/methods is tested by being there."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator

from helpers import CPU, batches_of, equal_trees, recipe_of, run, steps_of, tiny, wake
from repa_eval import checkpoints
from repa_eval.errors import UserError
from repa_eval.interfaces.images import load_data
from repa_eval.interfaces.method import METHODS, name_of
from repa_eval.interfaces.teacher import load_teacher
from repa_eval.runtime.hashing import digest_module
from repa_eval.sampling.generate import SamplerSettings, generate
from repa_eval.train import batches, loop, stages, state
from repa_eval.train.recipe import Recipe, read_recipe, resolve

NAMES = METHODS.names()
every_method = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run folder of every method, six steps long."""
    folder = tmp_path_factory.mktemp("runs")
    for name in NAMES:
        run(tiny(name), folder / name)
    return {name: folder / name for name in NAMES}


def test_the_files_are_the_names() -> None:
    assert METHODS.modules() == NAMES
    assert {"vanilla", "repa", "ssl", "classifier"} <= set(NAMES)


@every_method
def test_it_says_what_it_is(name: str) -> None:
    cls = METHODS.get(name)
    assert (cls.__doc__ or "").strip().split("\n")[0].endswith(".")
    assert all(
        field.metadata.get("help") or dataclasses.is_dataclass(field.default) for field in dataclasses.fields(cls)
    )
    assert cls.systems
    assert name_of(cls()) == name
    assert recipe_of(name)


def stages_of(recipe: Recipe) -> list[stages.ResolvedStage]:
    """The stages of a method's run, most have one."""
    images = load_data(recipe.settings.data, recipe.settings.split)
    return stages.resolve_stages(recipe, images, [load_teacher(name) for name in recipe.method.teachers()])


@every_method
def test_gradients_reach_what_it_trains_and_nothing_else(name: str) -> None:
    for stage in stages_of(tiny(name)):
        recipe, objective, images, teachers = steps_of(stage.recipe)
        ema = state.average_of(objective.model)
        wake(objective)
        objective.train()
        [batch] = batches_of(recipe, images, teachers)
        batch.ema = ema
        torch.stack(list(objective(batch, stage.first).values())).sum().backward()
        owned = {id(parameter) for parameter in recipe.method.trainable(objective.model, objective.extras)}
        assert owned
        for key, parameter in objective.named_parameters():
            reached = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
            assert reached == (id(parameter) in owned), key
        frozen = [p for module in (ema, *teachers) for p in module.parameters()]
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in frozen)


@every_method
def test_a_few_steps_lower_the_loss(name: str) -> None:
    # what trains beside a frozen network needs a network that has learned something: the embedded one
    base = {"base": METHODS.get(name)().base, "batch_size": 8} if hasattr(METHODS.get(name), "base") else {}
    for stage in stages_of(tiny(name, **{"batch_size": 16, "warmup_steps": 0, "learning_rate": 2e-3, **base})):
        lower_the_loss(stage)


def lower_the_loss(stage: stages.ResolvedStage) -> None:
    recipe, objective, images, teachers = steps_of(stage.recipe)
    if recipe.method.starts_from() is not None:
        stages.begin(stage, Path(), objective.model, images, teachers)
    accelerator = Accelerator(cpu=True)
    ema = state.average_of(objective.model)
    optimizer = recipe.settings.optim.build(recipe.method.trainable(objective.model, objective.extras))
    losses = []
    for _ in range(8):  # always the same batch with the same draws
        parts = batches_of(recipe, images, teachers)
        terms, _ = loop.update(accelerator, objective, parts, 0, optimizer, ema, recipe.settings)
        losses.append(float(sum(terms.values())))
    # a constant part, such as a denoising loss that starts at its mean, must not hide the fall
    assert losses[-1] < losses[0] - 0.02 * abs(losses[0]), losses


@every_method
def test_the_last_stage_is_the_run_itself(name: str) -> None:
    method = METHODS.get(name)()
    *others, last = method.stages()
    assert last.method is method
    assert last.until is None
    ends = [stage.until for stage in others]
    assert ends == sorted(ends)
    assert all(type(stage.method) is type(method) for stage in others)


@every_method
def test_teachers_run_while_they_are_needed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = resolve(read_recipe(recipe_of(name)), {"split": "val"})
    images = load_data(recipe.settings.data, "val")
    teachers = [load_teacher(teacher) for teacher in recipe.method.teachers()]
    asked = []
    for teacher in teachers:
        teacher.register_forward_hook(lambda *_: asked.append(1))
    for step in (0, recipe.settings.max_steps - 1):
        asked.clear()
        [batch] = batches_of(recipe, images, teachers, step=step)
        answers = len(teachers) if recipe.method.active(step) else 0
        assert len(asked) == len(batch.teachers) == len(batch.class_tokens) == len(batch.attention) == answers
        wanted = [sorted(layers) for layers in recipe.method.attention_layers()]
        assert not answers or [sorted(logits) for logits in batch.attention[: len(wanted)]] == wanted
    monkeypatch.setattr(METHODS.get(name), "active", lambda *_: False)
    [batch] = batches_of(recipe, images, teachers)
    assert (batch.teachers, batch.class_tokens, batch.attention) == ([], [], [])


@every_method
def test_teachers_rest_once_training_has_stopped_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `stopped` is asked before every step, with the extras as they are then
    seen: list[int] = []
    parts = batches.parts

    def watch(fetched: Any, recipe: Recipe, step: int, share: range, teachers: Any, device: Any, **more: Any) -> Any:
        seen.append(len(teachers))
        return parts(fetched, recipe, step, share, loaded, device, **more)

    recipe = tiny(name)
    loaded = [load_teacher(teacher) for teacher in recipe.method.teachers()]
    monkeypatch.setattr(METHODS.get(name), "stopped", lambda _self, _modules: len(seen) >= 3)
    monkeypatch.setattr(batches, "parts", watch)
    run(recipe, tmp_path / "run")
    assert seen == [len(loaded)] * 3 + [0] * 3


@every_method
def test_its_terms_are_named_and_one_number_each(name: str) -> None:
    recipe, objective, images, teachers = steps_of(tiny(name))
    [batch] = batches_of(recipe, images, teachers)
    batch.ema, batch.modules = state.average_of(objective.model), objective.extras
    terms = recipe.method.losses(objective.model.train(), batch, 0)
    assert all(key.isidentifier() for key in terms)
    assert all(term.shape in [(), (8,)] and bool(term.isfinite().all()) for term in terms.values())


@every_method
def test_resuming_is_bit_equal(name: str, trained: dict[str, Path], tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(trained[name], again)
    last = again / "checkpoints" / "0000006.pt"
    whole = last.read_bytes()
    last.unlink()
    assert run(tiny(name), again, resume=True) == last
    assert last.read_bytes() == whole


@every_method
def test_the_second_half_matters(name: str, trained: dict[str, Path]) -> None:
    # else the test above would pass for a trainer that does nothing after step 3
    middle, last = (state.load_checkpoint(trained[name] / "checkpoints" / f) for f in ("0000003.pt", "0000006.pt"))
    for part in ("model", "ema", "opt"):
        assert not equal_trees(middle[part], last[part]), part


@every_method
def test_draws_depend_on_seed_step_and_index_alone(name: str) -> None:
    recipe, _, images, _ = steps_of(tiny(name))
    [whole] = batches_of(recipe, images, [])
    halves = [batches_of(recipe, images, [], share=share)[0] for share in (range(4), range(4, 8))]
    [others] = batches_of(recipe, load_data(recipe.settings.data, "test"), [])  # other images
    assert not torch.equal(others.x, whole.x)
    assert whole.draws
    for key, draw in whole.draws.items():
        assert len(draw) == 8, key
        assert torch.equal(draw, torch.cat([half.draws[key] for half in halves])), key
        assert torch.equal(draw, others.draws[key]), key
        assert len(draw.flatten(1).unique(dim=0) if draw.ndim > 1 else draw.unique()) == 8, f"{key}: rows alike"
    for changed in (batches_of(recipe, images, [], step=1)[0], batches_of(tiny(name, seed=1), images, [])[0]):
        assert all(not torch.equal(changed.draws[key], draw) for key, draw in whole.draws.items())


@every_method
def test_losses_draw_nothing_themselves(name: str) -> None:
    recipe, objective, images, teachers = steps_of(tiny(name))
    wake(objective)
    values = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        [batch] = batches_of(recipe, images, teachers)
        batch.ema = state.average_of(objective.model)
        values.append(objective.train()(batch, 0))
    assert equal_trees(*values)


@every_method
def test_teachers_stay_as_they_are(name: str) -> None:
    recipe, objective, images, teachers = steps_of(tiny(name))
    before = [digest_module(teacher) for teacher in teachers]
    assert all(not teacher.training for teacher in teachers)
    optimizer = recipe.settings.optim.build(recipe.method.trainable(objective.model, objective.extras))
    ema = state.average_of(objective.model)
    for step in range(3):
        parts = batches.parts(images.fetch(range(8)), recipe, step, range(8), teachers, CPU)
        loop.update(Accelerator(cpu=True), objective, parts, step, optimizer, ema, recipe.settings)
    assert [digest_module(teacher) for teacher in teachers] == before


@every_method
def test_the_recipe_survives_a_round_trip(name: str) -> None:
    for recipe in (tiny(name), resolve(read_recipe(recipe_of(name)))):
        tree = recipe.to_dict()
        assert resolve(tree) == recipe
        assert resolve(yaml.safe_load(yaml.safe_dump(tree))).to_dict() == tree
        assert tree["method"] == name


@every_method
def test_the_checkpoint_holds_the_recipe(name: str, trained: dict[str, Path]) -> None:
    saved = state.load_checkpoint(trained[name] / "checkpoints" / "0000006.pt")["recipe"]
    assert saved == yaml.safe_load((trained[name] / "recipe.yaml").read_text())
    again = resolve(saved)
    assert again.to_dict() == saved
    assert again.method == tiny(name).method


@every_method
def test_a_misspelt_option_is_refused_with_the_right_one(name: str) -> None:
    for field in dataclasses.fields(METHODS.get(name)):
        wrong = f"{field.name}x"
        with pytest.raises(UserError, match=rf"unknown key 'options\.{wrong}'; did you mean 'options\.{field.name}'"):
            resolve({**read_recipe(recipe_of(name)), "options": {wrong: 1}})
        with pytest.raises(UserError, match=f"unknown key '{wrong}'; did you mean"):
            resolve(read_recipe(recipe_of(name)), {wrong: 1})


@every_method
def test_its_checkpoint_opens(name: str, trained: dict[str, Path]) -> None:
    for weights in ("ema", "online"):
        opened = checkpoints.load(trained[name] / "checkpoints" / "0000006.pt", weights=weights)
        assert opened.systems == METHODS.get(name).systems
        assert (opened.step, opened.weights, opened.run) == (6, weights, name)
        assert not opened.model.training
        assert not any(parameter.requires_grad for parameter in opened.model.parameters())


@pytest.mark.parametrize("name", [name for name in NAMES if METHODS.get(name).samples])
def test_images_can_be_made_from_its_checkpoint(name: str, trained: dict[str, Path]) -> None:
    model = checkpoints.load(trained[name] / "checkpoints" / "0000006.pt").model
    [(indices, images, labels)] = generate(model, range(3), SamplerSettings(num_steps=2), batch_size=4)
    assert indices == [0, 1, 2]
    assert images.shape == (3, *model.image_shape)
    assert labels.shape == (3,)
    assert not torch.equal(images[0], images[1])


@pytest.mark.parametrize("name", [name for name in NAMES if METHODS.get(name)().aligned_layer() is not None])
def test_a_layer_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"encoder_depth 7: this model has blocks 1\.\.[26]"):
        steps_of(tiny(name, encoder_depth=7))
