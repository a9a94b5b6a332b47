"""HASTE: attention distillation, the fixed stop, the gradient trigger, the fade, and what the teacher is asked."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers import ROOT, batches_of, equal_trees, run, steps_of, tiny, wake
from repa_eval import checkpoints
from repa_eval.config import to_dict
from repa_eval.errors import UserError
from repa_eval.interfaces.method import Batch
from repa_eval.teachers.digits_vit import DigitsViT
from repa_eval.train import state
from repa_eval.train.attention_loss import attention_losses, fit_features, fit_logits
from repa_eval.train.gradient_cosine import gradient_cosine, gradient_of
from repa_eval.train.methods.haste import PUBLISHED, Haste
from repa_eval.train.recipe import Recipe, read_recipe, resolve

# looks at the gradients of every second step, and always finds them apart: no cosine reaches 2
FIRES = {"trigger": True, "trigger_after": 2, "trigger_every": 2, "trigger_threshold": 2.0}


def tokens(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def made(recipe: Recipe) -> tuple[Any, Batch]:
    """The objective, awake, and its first batch with the extras in it."""
    recipe, objective, images, teachers = steps_of(recipe)
    wake(objective)
    [batch] = batches_of(recipe, images, teachers)
    batch.modules = objective.extras
    return objective, batch


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that the teacher is given."""
    sizes: list[int] = []
    forward = DigitsViT.forward

    def counted(self: DigitsViT, images: Tensor) -> Any:
        sizes.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(DigitsViT, "forward", counted)
    return sizes


# --- the distillation


def test_the_least_value_is_the_teachers_entropy() -> None:
    target = 2 * tokens(0, 3, 2, 9, 9)
    entropy = torch.distributions.Categorical(logits=target).entropy().mean()
    [same] = attention_losses([target], [target + 5.0])  # a constant per row changes no attention
    torch.testing.assert_close(same, entropy)
    [other] = attention_losses([target], [tokens(1, 3, 2, 9, 9)])
    assert other > same + 0.1


@pytest.mark.parametrize(("student", "teacher"), [(5, 3), (3, 5), (4, 4)])
def test_the_first_heads_are_compared(student: int, teacher: int) -> None:
    target, own = tokens(0, 2, teacher, 9, 9), tokens(1, 2, student, 9, 9).requires_grad_()
    [loss] = attention_losses([target], [own])
    loss.backward()
    assert own.grad is not None
    shared = min(student, teacher)
    assert [bool(head.abs().sum() > 0) for head in own.grad.transpose(0, 1)] == [k < shared for k in range(student)]
    [alone] = attention_losses([target[:, :shared]], [own[:, :shared]])
    assert torch.equal(alone, loss)


def test_half_precision_is_widened_first() -> None:
    target, own = ((30 * tokens(seed, 2, 3, 9, 9)).half() for seed in (0, 1))
    [loss] = attention_losses([target], [own])
    assert loss.dtype == torch.float32
    assert bool(loss.isfinite())
    assert torch.equal(loss, attention_losses([target.float()], [own.float()])[0])
    assert not bool(own.softmax(-1).log().isfinite().all())  # what the published code would take the mean of


def test_the_teacher_gets_no_gradient() -> None:
    target, own = tokens(0, 2, 3, 9, 9).requires_grad_(), tokens(1, 2, 3, 9, 9).requires_grad_()
    attention_losses([target], [own]).sum().backward()
    assert target.grad is None


def test_other_grids_are_resized_on_request_only() -> None:
    logits, features = tokens(0, 2, 3, 16, 16), tokens(1, 2, 16, 5)
    assert fit_logits(logits, 16, resize=False) is logits
    assert fit_features(features, 16, resize=False) is features
    for fit, values in ((fit_logits, logits), (fit_features, features)):
        with pytest.raises(UserError, match="the student has 16 tokens, the teacher 9; set resize=true"):
            fit(values, 9, resize=False)
        with pytest.raises(UserError, match="16 tokens cannot be resized to 10: both must be squares"):
            fit(values, 10, resize=True)
    maps = features.mT.unflatten(2, (4, 4))
    expected = F.interpolate(maps, size=(3, 3), mode="bilinear").flatten(2).mT
    torch.testing.assert_close(fit_features(features, 9, resize=True), expected)
    # rows of logits that depend on the query alone, and on the key alone, keep doing so
    of_query, of_key = features[..., :1].mT[:, :, :, None], features[..., :1].mT[:, :, None]
    for values, smaller in (
        (of_query.expand(2, 1, 16, 16), expected[..., :1].mT[:, :, :, None]),
        (of_key.expand(2, 1, 16, 16), expected[..., :1].mT[:, :, None]),
    ):
        torch.testing.assert_close(fit_logits(values, 9, resize=True), smaller.expand(2, 1, 9, 9))


def test_logits_come_from_the_chosen_blocks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, batch = made(tiny("haste", depth=6, encoder_depth=3, student_layers=[2, 3]))
    assert [sorted(logits) for logits in batch.attention] == [[1, 2]]
    fused: list[int] = []
    attention = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *qkv: (fused.append(1), attention(*qkv))[1])
    objective.method.losses(objective.model, batch, 0)
    assert len(fused) == 4
    objective.method.losses(objective.model, batch, objective.method.early_stop_point)
    assert len(fused) == 4 + 6


def test_the_distillation_reaches_its_blocks_and_those_before() -> None:
    objective, batch = made(tiny("haste", depth=6, encoder_depth=3, student_layers=[2, 3]))
    objective.method.losses(objective.model, batch, 0)["attn_loss"].backward()
    reached = {
        name for name, p in objective.model.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)
    }
    assert {f"blocks.{k}.attn.qkv.weight" for k in (0, 1, 2)} <= reached
    assert "blocks.1.mlp.fc1.weight" in reached
    assert not [name for name in reached if name.startswith(("blocks.2.mlp", "blocks.3", "final", "projectors"))]


def test_terms_are_weighted() -> None:
    objective, batch = made(tiny("haste", proj_coeff=1.0, attn_coeff=1.0))
    one = objective(batch, 0)
    objective.method = dataclasses.replace(objective.method, proj_coeff=0.5, attn_coeff=3.0)
    other = objective(batch, 0)
    torch.testing.assert_close(other["proj_loss"], 0.5 * one["proj_loss"])
    torch.testing.assert_close(other["attn_loss"], 3.0 * one["attn_loss"])


def test_without_distillation_it_is_repa_until_the_stop() -> None:
    objective, batch = made(tiny("haste", attn_coeff=0.0))
    assert objective.method.attention_layers() == [[]]
    assert batch.attention == [{}]
    repa, same = made(tiny("repa", data="digits", enc_type="digits-vit"))
    assert equal_trees(objective(batch, 0), repa(same, 0))


# --- which layers


def test_defaults_are_the_published_ones() -> None:
    published = {
        "enc_type": "dinov2-vit-b", "encoder_depth": 8, "proj_coeff": 0.5, "attn_coeff": 0.5, "cfg_prob": 0.1,
        "early_stop_point": 250_000, "fade_steps": 0, "trigger": False, "trigger_after": 50_000,
        "trigger_every": 10_000, "trigger_times": [0.02, 0.1, 0.5, 0.8], "trigger_threshold": -0.05,
    }  # fmt: skip
    own = to_dict(Haste())
    assert {key: own[key] for key in published} == published


def test_layers_follow_from_the_depth_as_published() -> None:
    assert Haste(encoder_depth=5).pairs() == [(3, 8), (4, 10), (5, 12)]  # table 16, from 0: 2,3,4 and 7,9,11
    assert Haste().pairs() == [(5, 9), (6, 10), (7, 11), (8, 12)]  # the published code's 4..7 and 8..11
    assert list(Haste(encoder_depth=5).attention_layers()) == [[8, 10, 12]]
    assert Haste(student_layers=(2, 2), teacher_layers=(4, 1)).pairs() == [(2, 4), (2, 1)]
    assert list(Haste(student_layers=(2, 2), teacher_layers=(4, 1)).attention_layers()) == [[1, 4]]
    for depth, (student, _) in PUBLISHED.items():
        assert max(student) == depth


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"student_layers": [2, 7]}, r"student_layers 7: this model has blocks 1\.\.6"),
        ({"student_layers": [3]}, r"student_layers \[3\] and teacher_layers \[1, 2\] do not make pairs"),
        ({"student_layers": [], "teacher_layers": []}, "encoder_depth 3: layers are published for 5 and 8; give"),
        ({"trigger_block": 9}, r"trigger_block 9: this model has blocks 1\.\.6"),
        ({"enc_type": "none"}, "enc_type names no teacher"),
        ({"fade": "exponential"}, "options.fade: 'exponential' is not allowed; choose one of linear, cosine"),
        ({"attn_coeff": -1}, "options.attn_coeff: -1.0 is not allowed; it is at least 0"),
        ({"early_stop": 5}, "unknown key 'early_stop'; did you mean 'early_stop_point'"),
    ],
)
def test_wrong_options_are_refused_in_one_line(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        steps_of(resolve(read_recipe("digits-haste"), overrides))
    assert "\n" not in str(caught.value)


def test_a_layer_that_the_teacher_lacks_is_refused() -> None:
    with pytest.raises(UserError, match=r"layer 3: teacher digits-vit has blocks 1\.\.2"):
        made(tiny("haste", teacher_layers=[1, 3]))


@pytest.mark.parametrize("path", sorted((ROOT / "train/recipes/imagenet").glob("haste-*")), ids=lambda path: path.stem)
def test_published_recipes(path: Path) -> None:
    recipe = resolve(read_recipe(str(path)))
    method, size = recipe.method, path.stem.removeprefix("haste-sit-")
    assert isinstance(method, Haste)
    stop = {"b-2": 100_000, "l-2": 250_000, "xl-2": 250_000, "xl-2-512": 300_000}[size]
    assert (method.early_stop_point, method.proj_coeff, method.attn_coeff) == (stop, 0.5, 0.5)
    assert method.encoder_depth == (5 if size == "b-2" else 8)
    assert "arXiv 2505.16792" in recipe.settings.description
    method.architecture(recipe.architecture, [768])


# --- the stop


def test_after_the_stop_the_loss_is_vanillas_bit_for_bit() -> None:
    haste, batch = made(tiny("haste", early_stop_point=4))
    vanilla, _ = made(tiny("vanilla"))
    vanilla.model.load_state_dict({k: v for k, v in haste.model.state_dict().items() if "projectors" not in k})
    assert list(haste(batch, 3)) == ["denoising_loss", "proj_loss", "attn_loss"]
    stopped, plain = (
        objective.method.losses(objective.model, dataclasses.replace(batch, teachers=[], attention=[]), 4)
        for objective in (haste, vanilla)
    )
    assert equal_trees(stopped, plain)


def test_a_run_that_stops_at_once_is_vanilla_bit_for_bit(tmp_path: Path, asked: list[int]) -> None:
    stopped = state.load_checkpoint(run(tiny("haste", early_stop_point=0), tmp_path / "haste"))
    plain = state.load_checkpoint(run(tiny("vanilla"), tmp_path / "vanilla"))
    for part in ("model", "ema"):
        kept = {name: tensor for name, tensor in stopped[part].items() if not name.startswith("projectors")}
        assert equal_trees(kept, plain[part]), part
    assert asked == []


def test_the_teacher_is_not_asked_after_the_stop(tmp_path: Path, asked: list[int]) -> None:
    run(tiny("haste", early_stop_point=4), tmp_path / "run")
    assert asked == [8] * 4


@pytest.mark.parametrize("options", [{"early_stop_point": 3}, {"early_stop_point": 4}, FIRES], ids=str)
def test_resuming_across_the_stop_is_bit_equal(options: dict[str, Any], tmp_path: Path) -> None:
    recipe = tiny("haste", **{"max_steps": 8, "checkpoint_every": 2, **options})
    last = run(recipe, tmp_path / "whole")
    for step in (2, 4, 6):
        again = tmp_path / f"from-{step}"
        shutil.copytree(tmp_path / "whole", again)
        for path in (again / "checkpoints").glob("*.pt"):
            if int(path.stem) > step:
                path.unlink()
        assert run(recipe, again, resume=True).read_bytes() == last.read_bytes(), step


def test_projectors_stay_as_they_are_after_the_stop(tmp_path: Path) -> None:
    run(tiny("haste", early_stop_point=3), tmp_path / "run")
    middle, last = (state.load_checkpoint(tmp_path / f"run/checkpoints/000000{k}.pt")["model"] for k in (3, 6))
    assert {name for name in middle if torch.equal(middle[name], last[name])} == {
        name for name in middle if name.startswith("projectors") or name == "pos_embed"
    }


def test_fading_falls_from_one_to_nothing() -> None:
    hard, linear, cosine = (Haste(early_stop_point=10, fade_steps=n, fade=f) for n, f in
                            ((0, "linear"), (4, "linear"), (4, "cosine")))  # fmt: skip
    assert [hard.share(step) for step in (0, 9)] == [1, 1]
    assert [linear.share(step) for step in range(5, 10)] == [1, 1, 0.75, 0.5, 0.25]
    assert [cosine.share(step) for step in (5, 6, 8)] == [1, 1, pytest.approx(0.5)]
    assert cosine.share(9) < 0.25 < 0.75 < cosine.share(7) < 1
    objective, batch = made(tiny("haste", early_stop_point=10, fade_steps=4))
    whole, half = objective(batch, 0), objective(batch, 8)
    assert torch.equal(half["denoising_loss"], whole["denoising_loss"])
    for name in ("proj_loss", "attn_loss"):
        torch.testing.assert_close(half[name], 0.5 * whole[name])


# --- the trigger


def test_cosines_of_gradients() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    other = torch.nn.Parameter(torch.tensor(3.0))
    first = gradient_of((weight * torch.tensor([1.0, 0.0])).sum() + other, [weight, other])
    second = gradient_of(weight[0] * 2 - weight[1] * 0, [weight, other])
    assert first.tolist() == [1, 0, 1]
    assert second.tolist() == [2, 0, 0]
    assert float(gradient_cosine(first, second)) == pytest.approx(0.5**0.5)
    assert float(gradient_cosine(first, -3 * first)) == pytest.approx(-1)
    assert gradient_cosine(first, None).isnan()
    assert weight.grad is None


def test_the_trigger_stops_for_good(tmp_path: Path, asked: list[int]) -> None:
    checkpoint = run(tiny("haste", **FIRES), tmp_path / "run")
    assert asked == [8] * 3  # steps 0, 1, and 2, at which it fires
    saved = state.load_checkpoint(checkpoint)
    assert int(saved["method"]["trigger.stopped_at"]) == 2
    curves = (tmp_path / "run" / "log.jsonl").read_text()
    assert curves.count('"attn_loss"') == 2
    assert checkpoints.load(checkpoint).systems == ("HASTE",)


def test_the_trigger_looks_when_it_is_due_and_remembers() -> None:
    objective, batch = made(tiny("haste", **{**FIRES, "trigger_threshold": -1.1}))
    method, trigger = objective.method, objective.extras["trigger"]
    for step, looks in ((0, False), (1, False), (2, True), (3, False), (4, True)):
        trigger.cosine.fill_(7.0)
        assert len(method.losses(objective.model, batch, step)) == 3
        assert (float(trigger.cosine) != 7.0) == looks, step
    assert int(trigger.stopped_at) == -1
    times = torch.tensor(method.trigger_times)
    expected = method.cosines(objective.model, batch, times, batch.draws["noise"].expand(4, *batch.x.shape))
    torch.testing.assert_close(trigger.cosine, expected[:, 0].mean().float())
    assert all(parameter.grad is None for parameter in objective.parameters())
    below = dataclasses.replace(method, trigger_threshold=float(trigger.cosine) + 1e-3)
    assert list(below.losses(objective.model, batch, 4)) == ["denoising_loss"]
    assert list(below.losses(objective.model, batch, 5)) == ["denoising_loss"]
    assert below.stopped(objective.extras)
    assert int(trigger.stopped_at) == 4


def test_the_trigger_compares_one_block_without_label_drops() -> None:
    objective, batch = made(tiny("haste", trigger=True, cfg_prob=1.0))
    method, model = objective.method, objective.model
    times, noise = torch.tensor([0.1, 0.7]), tokens(0, 2, *batch.x.shape)
    cosines = method.cosines(model, batch, times, noise)
    assert cosines.shape == (2, 3)
    assert cosines.dtype == torch.float64
    assert bool((cosines.abs() <= 1).all())
    same = dataclasses.replace(method, cfg_prob=0.0, trigger_block=1)
    assert torch.equal(same.cosines(model, batch, times, noise), cosines)  # block 1 is the aligned one here
    assert not torch.allclose(
        dataclasses.replace(method, encoder_depth=2, trigger_block=1).cosines(model, batch, times, noise),
        dataclasses.replace(method, encoder_depth=2).cosines(model, batch, times, noise),
    )
    alone = dataclasses.replace(method, attn_coeff=0.0).cosines(model, batch, times, noise)
    torch.testing.assert_close(alone[:, 0], cosines[:, 1], rtol=1e-4, atol=1e-6)  # fused attention throughout
    assert bool(alone[:, 2].isnan().all())
