"""U-REPA: the manifold loss, the order of projecting and upsampling, both backbones, the ablations."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers import ROOT, batches_of, run, steps_of, tiny, wake
from repa_eval import checkpoints
from repa_eval.config import to_dict
from repa_eval.diffusion import ddpm_schedule as diffusion
from repa_eval.diffusion.conventions import NoisePrediction
from repa_eval.errors import UserError
from repa_eval.interfaces.method import Batch
from repa_eval.models.sit_down import upsample_tokens
from repa_eval.sampling.generate import SamplerSettings, generate
from repa_eval.train import state
from repa_eval.train.losses import ddpm_steps, noise_loss, sample_cosines
from repa_eval.train.methods.urepa import SCHEDULES, TimeScale, Urepa, manifold_loss, to_grid
from repa_eval.train.recipe import Recipe, read_recipe, resolve

PAIRS = ("intra", "batch", "sample")
every_kind_of_pairs = pytest.mark.parametrize("pairs", PAIRS)
# a U-DiT for 8x8 pixels: 2x2 in the middle, the teacher has 4x4
UDIT = {
    "model": "U-DiT-S", "depth": [1, 1, 1, 1, 1], "hidden_size": 16, "num_heads": 4, "encoder_depth": 3,
    "projector_dim": 32,
}  # fmt: skip


def udit(**overrides: Any) -> Recipe:
    return tiny("urepa", **{**UDIT, **overrides})


def made(recipe: Recipe) -> tuple[Any, Batch]:
    """The objective, awake, and its first batch with the extras in it."""
    recipe, objective, images, teachers = steps_of(recipe)
    wake(objective)
    [batch] = batches_of(recipe, images, teachers)
    batch.modules = objective.extras
    return objective, batch


def tokens(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- the manifold loss


@every_kind_of_pairs
def test_equal_features_have_no_manifold_loss(pairs: str) -> None:
    y = tokens(0, 3, 9, 7)
    assert torch.equal(manifold_loss(y, y, pairs=pairs), torch.zeros(3) if pairs == "intra" else torch.tensor(0.0))


@every_kind_of_pairs
def test_rotations_and_scales_do_not_matter(pairs: str) -> None:
    y, h = tokens(0, 3, 9, 7), tokens(1, 3, 9, 5)
    rotation = torch.linalg.qr(tokens(2, 5, 5))[0]
    wider = torch.linalg.qr(tokens(3, 8, 5))[0].mT  # 5 -> 8 dimensions, lengths and angles kept
    expected = manifold_loss(y, h, pairs=pairs)
    for same in (h @ rotation, h @ wider, 7 * h):
        torch.testing.assert_close(manifold_loss(y, same, pairs=pairs), expected, rtol=1e-4, atol=1e-6)
    assert float(manifold_loss(h @ rotation, h, pairs=pairs).max()) < 1e-6
    assert float(expected.min()) > 1e-3


@every_kind_of_pairs
def test_only_the_student_learns(pairs: str) -> None:
    y, h = tokens(0, 3, 9, 7).requires_grad_(), tokens(1, 3, 9, 5).requires_grad_()
    manifold_loss(y, h, pairs=pairs).sum().backward()
    assert y.grad is None
    assert h.grad is not None
    assert bool(h.grad.abs().sum() > 0)


def test_pairs_of_the_batch_are_all_pairs() -> None:
    y, h = tokens(0, 3, 9, 7).requires_grad_(), tokens(1, 3, 9, 5).requires_grad_()
    flat_y, flat_h = (F.normalize(z.flatten(0, 1), dim=-1) for z in (y, h))
    plain = (flat_y @ flat_y.T - flat_h @ flat_h.T).square().mean()
    short = manifold_loss(y, h, pairs="batch")
    torch.testing.assert_close(short, plain, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(*(torch.autograd.grad(loss, [h])[0] for loss in (short, plain)), rtol=1e-4, atol=1e-7)


@every_kind_of_pairs
def test_half_precision_loses_nothing_but_the_rounding_of_its_input(pairs: str) -> None:
    y, h = tokens(0, 3, 9, 7).bfloat16(), tokens(1, 3, 9, 7).bfloat16()
    exact = manifold_loss(y.float(), h.float(), pairs=pairs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(manifold_loss(y, h, pairs=pairs), exact)
        assert (y.float() @ y.float().mT).dtype == torch.bfloat16  # what autocast would have done to it
    assert exact.dtype == torch.float32


def test_cosines_per_sample_average_to_the_alignment() -> None:
    y, h = [tokens(0, 3, 9, 7), tokens(1, 3, 4, 6)], [tokens(2, 3, 9, 7), tokens(3, 3, 4, 6)]
    expected = torch.stack([F.cosine_similarity(a, b, dim=-1).mean(1) for a, b in zip(y, h, strict=True)]).mean(0)
    torch.testing.assert_close(sample_cosines(y, h), expected)


# --- what is aligned


@pytest.mark.parametrize("recipe", [tiny("urepa", encoder_depth=3), udit()], ids=["SiT-down", "U-DiT"])
def test_the_projector_comes_before_the_upsampling(recipe: Recipe) -> None:
    objective, batch = made(recipe)
    model, method = objective.model, objective.method
    assert model.grid(3) == (2, 2)
    middle = tokens(0, len(batch.x), 4, 32 if model.projectors else model.width(3))
    [head] = model.projectors or batch.modules["projectors"]
    [found] = method.projections(model, batch, middle, torch.zeros(len(batch.x)))
    assert torch.equal(found, upsample_tokens(head(middle), (2, 2)))
    assert found.shape == batch.teachers[0].shape
    assert not torch.allclose(found, head(upsample_tokens(middle, (2, 2))), rtol=1e-3)


def test_alignment_reaches_its_block_and_those_before() -> None:
    objective, batch = made(tiny("urepa", encoder_depth=3))
    terms = objective.method.losses(objective.model, batch, 0)
    (terms["proj_loss"].mean() + terms["manifold_loss"].mean()).backward()
    moved = {
        name.rsplit(".", 1)[0]
        for name, parameter in objective.model.named_parameters()
        if parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
    }
    assert any(name.startswith("middle_blocks.0.") for name in moved)
    assert any(name.startswith("encoder_blocks.1.") for name in moved)
    assert any(name.startswith("projectors.0.") for name in moved)
    assert not [name for name in moved if name.startswith(("middle_blocks.1", "decoder_blocks", "up.", "final_layer"))]


def test_tokens_that_fit_stay_and_others_are_refused() -> None:
    z = tokens(0, 2, 16, 3)
    assert to_grid(z, (4, 4), 4, layer=1) is z
    assert to_grid(z, (4, 4), 8, layer=1).shape == (2, 64, 3)
    with pytest.raises(UserError, match="encoder_depth 1: the tokens there are 4x4, the teacher's 3x3; choose a block"):
        to_grid(z, (4, 4), 3, layer=1)
    objective, batch = made(udit(encoder_depth=1))
    with pytest.raises(UserError, match="encoder_depth 1: the tokens there are 8x8, the teacher's 4x4"):
        objective.method.losses(objective.model, batch, 0)


# --- U-DiT


def test_the_noise_loss_is_that_of_ddpm() -> None:
    objective, batch = made(udit(cfg_prob=0.0))
    model = objective.model
    terms, hidden = noise_loss(model, batch, cfg_prob=0.0, taps=(3,))
    steps = (batch.draws["time"] * 1000).long()
    expected = diffusion.losses(
        lambda x, told: model(x, told, batch.y)[0], diffusion.linear_schedule(), batch.x, batch.draws["noise"], steps
    )
    assert torch.equal(terms["mse"] + terms["vb"], expected["loss"])
    assert hidden[3].shape == (8, 4, 64)
    assert ddpm_steps(torch.tensor([0.0, 0.0009, 0.001, 0.99999994])).tolist() == [0, 0, 1, 999]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("udit") / "run"
    run(udit(), folder)
    return folder


def test_u_dit_resumes_and_opens(trained: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(trained, again)
    last = again / "checkpoints" / "0000006.pt"
    whole = last.read_bytes()
    last.unlink()
    assert run(udit(), again, resume=True).read_bytes() == whole
    saved = state.load_checkpoint(last)
    assert any(name.startswith("projectors.0.") for name in saved["method"])
    assert not any(name.startswith("projectors") for name in saved["model"])
    opened = checkpoints.load(last)
    assert isinstance(opened.model, NoisePrediction)
    assert opened.systems == ("U-REPA",)
    assert opened.option("encoder_depth") == 3
    [(_, images, _)] = generate(opened.model, range(2), SamplerSettings(num_steps=2), batch_size=2)
    assert images.shape == (2, 1, 8, 8)


def test_every_parameter_of_u_dit_and_its_projector_learns() -> None:
    objective, batch = made(udit(time_aware=True))
    terms = objective(batch, 0)
    assert list(terms) == ["denoising_loss", "vb_loss", "proj_loss", "manifold_loss"]
    torch.stack(list(terms.values())).sum().backward()
    untouched = [name for name, p in objective.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert untouched == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"path_type": "cosine"}, "U-DiT predicts the noise of DDPM's steps, drawn uniformly; leave interpolant"),
        ({"learn_sigma": False}, "learn_sigma false: DDPM's loss of U-DiT teaches the variance"),
        ({"encoder_depth": 6}, r"encoder_depth 6: this model has blocks 1\.\.5"),
    ],
)
def test_what_u_dit_cannot_do_is_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        steps_of(udit(**overrides))


def test_projectors_of_u_dit_start_as_those_of_other_networks() -> None:
    objective = steps_of(udit(projector_dim=256))[1]
    for linear in objective.extras["projectors"][0][::2]:
        assert not bool(linear.bias.any())
        bound = (6 / sum(linear.weight.shape)) ** 0.5  # xavier's
        assert 0.95 * bound < float(linear.weight.detach().abs().max()) <= bound


# --- options


def test_defaults_are_the_published_ones() -> None:
    published = {
        "enc_type": "dinov2-vit-b", "encoder_depth": 18, "proj_coeff": 0.5, "manifold_coeff": 3.0,
        "manifold_pairs": "intra", "coeff_schedule": "constant", "time_aware": False, "cfg_prob": 0.1,
    }  # fmt: skip
    own = to_dict(Urepa())
    assert {key: own[key] for key in published} == published


def test_schedules_are_those_of_the_paper() -> None:
    t = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    expected = {
        "constant": [1, 1, 1, 1, 1],
        "noisy": [1, 1, 1, 1.25, 1.5],
        "clean": [1.5, 1.25, 1, 1, 1],
        "ends": [1, 1, 0.5, 1, 1],
    }
    assert {name: function(t).tolist() for name, function in SCHEDULES.items()} == expected


@pytest.mark.parametrize("recipe", [tiny("urepa"), udit()], ids=["SiT-down", "U-DiT"])
def test_a_schedule_weighs_each_sample_by_its_time(recipe: Recipe) -> None:
    objective, batch = made(recipe)
    plain = objective.method.losses(objective.model, batch, 0)
    noisy = dataclasses.replace(objective.method, coeff_schedule="noisy").losses(objective.model, batch, 0)
    time = batch.draws["time"]
    weights = SCHEDULES["noisy"](time if objective.model.projectors else (time * 1000).long() / 1000)
    for name in ("proj_loss", "manifold_loss"):
        torch.testing.assert_close(noisy[name], weights * plain[name])
    assert torch.equal(noisy["denoising_loss"], plain["denoising_loss"])
    assert len(weights.unique()) > 2


def test_coefficients_multiply_their_terms() -> None:
    objective, batch = made(tiny("urepa", proj_coeff=1.0, manifold_coeff=1.0))
    one = objective(batch, 0)
    objective.method = dataclasses.replace(objective.method, proj_coeff=0.5, manifold_coeff=6.0)
    other = objective(batch, 0)
    torch.testing.assert_close(other["proj_loss"], 0.5 * one["proj_loss"])
    torch.testing.assert_close(other["manifold_loss"], 3.0 * one["manifold_loss"])


def test_a_fresh_time_scale_changes_nothing_and_a_trained_one_does() -> None:
    scale, x, t = TimeScale(16, 5), tokens(0, 3, 4, 5), torch.tensor([0.1, 0.5, 0.9])
    assert torch.equal(scale(x, t), x)
    wake(scale)
    moved = scale(x, t) - x
    assert all(bool(row.abs().sum() > 0) for row in moved)
    assert not torch.allclose(scale(x, t), scale(x, t.flip(0)))
    without, with_time = (steps_of(tiny("urepa", time_aware=flag))[1] for flag in (False, True))
    assert list(without.extras) == []
    assert list(with_time.extras) == ["time"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"manifold_pairs": "image"},
            "options.manifold_pairs: 'image' is not allowed; choose one of intra, batch, sam",
        ),
        ({"coeff_schedule": "linear"}, "'linear' is not allowed; choose one of constant, noisy, clean, ends"),
        ({"manifold_coef": 1}, "unknown key 'manifold_coef'; did you mean 'manifold_coeff'"),
        ({"enc_type": ""}, "enc_type names no teacher"),
        ({"coeff_schedule": "ends", "manifold_pairs": "batch"}, "coeff_schedule ends weighs each image"),
        ({"model": "SiT-digits/2"}, r"method urepa does not train SiT-digits/2 \(SiT\), only SiT-down, U-DiT"),
    ],
)
def test_wrong_options_are_refused_in_one_line(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        steps_of(resolve(read_recipe("digits-urepa"), overrides))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", sorted((ROOT / "train/recipes").rglob("*u*repa*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_align_the_middle(path: Path) -> None:
    recipe = resolve(read_recipe(str(path)))
    assert isinstance(recipe.method, Urepa)
    before, middle, _ = recipe.architecture.stages
    assert before < recipe.method.encoder_depth <= before + middle
    assert recipe.method.manifold_coeff == 3.0
    assert "arXiv 2503.18414" in recipe.settings.description or recipe.settings.data == "digits"


def test_the_same_network_trains_without_a_teacher() -> None:
    objective, batch = made(resolve(tiny("urepa").to_dict(), {"method": "vanilla"}))
    assert list(objective(batch, 0)) == ["denoising_loss"]
