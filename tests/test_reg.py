"""REG: the class token in training, narrowed to principal components, and in everything that opens its checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from helpers import batches_of, digits, equal_trees, run, steps_of, tiny, wake
from repa_eval import checkpoints
from repa_eval.cli import main
from repa_eval.errors import UserError
from repa_eval.interfaces.teacher import Teacher, Tokens, load_teacher
from repa_eval.monitors import alignment
from repa_eval.monitors.alignment import AlignmentMap
from repa_eval.monitors.previews import Preview
from repa_eval.monitors.probes import Probes
from repa_eval.monitors.shared import suites
from repa_eval.monitors.token_colours import TokenColours
from repa_eval.probes import splits
from repa_eval.sampling.generate import SamplerSettings, generate
from repa_eval.train import state
from repa_eval.train.batches import ask
from repa_eval.train.methods.reg import components


@pytest.fixture(scope="module", params=[16, 0])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """cls_dim, and a run folder."""
    out = tmp_path_factory.mktemp("reg") / "run"
    run(tiny("reg", cls_dim=request.param), out)
    return request.param, out


def clean_tokens(count: int = 200) -> torch.Tensor:
    pixels = digits("val").pixels(range(count))
    tokens = load_teacher("digits-vit")(pixels).cls
    assert tokens is not None
    return tokens


# --- the loss


@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_a_samples_class_loss_depends_on_that_sample_alone(path: str) -> None:
    recipe, objective, images, teachers = steps_of(tiny("reg", path_type=path, cls_dim=0))
    wake(objective)
    [batch] = batches_of(recipe, images, teachers)
    before = recipe.method.losses(objective.model, batch, 0)["cls_loss"]
    others = batch.class_tokens[0].clone()
    others[1:] *= 2
    batch.class_tokens = [others]
    after = recipe.method.losses(objective.model, batch, 0)["cls_loss"]
    torch.testing.assert_close(after[0], before[0])
    assert not torch.allclose(after[1:], before[1:])


def test_both_states_are_noised_at_the_same_time_by_noises_of_their_own() -> None:
    recipe, objective, images, teachers = steps_of(tiny("reg", cls_dim=0))
    [batch] = batches_of(recipe, images, teachers)
    seen: dict[str, torch.Tensor] = {}
    objective.model.register_forward_pre_hook(
        lambda _model, given, named: seen.update(x=given[0], t=given[1], cls=named["cls_token"]), with_kwargs=True
    )
    recipe.method.losses(objective.model, batch, 0)
    t = seen["t"]
    assert torch.equal(t, batch.draws["time"])
    noise = (seen["x"] - (1 - t)[:, None, None, None] * batch.x) / t[:, None, None, None]
    torch.testing.assert_close(noise, batch.draws["noise"], rtol=1e-3, atol=1e-3)
    own = (seen["cls"] - (1 - t)[:, None] * batch.class_tokens[0]) / t[:, None]
    torch.testing.assert_close(own, batch.draws["class_noise"], rtol=1e-3, atol=1e-3)


def test_the_latents_draws_are_those_of_the_other_methods() -> None:
    [mine] = batches_of(tiny("reg"), digits("val"), [])
    [plain] = batches_of(tiny("vanilla"), digits("val"), [])
    assert all(torch.equal(mine.draws[name], draw) for name, draw in plain.draws.items())
    assert set(mine.draws) - set(plain.draws) == {"class_noise"}


def test_all_tokens_are_aligned_the_class_token_too() -> None:
    recipe, objective, images, teachers = steps_of(tiny("reg"))
    [batch] = batches_of(recipe, images, teachers)
    before = recipe.method.losses(objective.model, batch, 0)["proj_loss"]
    # flipping the class token turns 1 of 17 cosines round
    given = batch.class_tokens[0]
    batch.class_tokens = [-batch.class_tokens[0]]
    seen: list[torch.Tensor] = []
    objective.model.projectors[0].register_forward_hook(lambda _m, _g, out: seen.append(out))
    narrow = objective.model.class_token
    objective.model.class_token = lambda tokens: narrow(-tokens)
    after = recipe.method.losses(objective.model, batch, 0)["proj_loss"]
    of_class = torch.cosine_similarity(seen[0][:, 0], given, dim=-1).mean()
    assert seen[0].shape == (8, 17, 96)
    torch.testing.assert_close(after - before, 2 * of_class / 17, rtol=1e-3, atol=1e-5)


def test_several_teachers_give_the_class_token_of_the_first() -> None:
    recipe, objective, images, teachers = steps_of(tiny("reg", enc_type="digits-vit-random,digits-vit", cls_dim=0))
    assert recipe.architecture.z_dims == (96, 96)
    [batch] = batches_of(recipe, images, teachers)
    seen: list[torch.Tensor] = []
    objective.model.class_token = lambda tokens: seen.append(tokens) or tokens
    assert set(recipe.method.losses(objective.model, batch, 0)) == {"denoising_loss", "cls_loss", "proj_loss"}
    assert torch.equal(seen[0], teachers[0](batch.images).cls)


class NoClassToken(Teacher):
    """A teacher without a class token."""

    name, width, digest = "bare", 96, "0" * 12

    def forward(self, images: torch.Tensor) -> Tokens:
        return Tokens(patches=torch.zeros(len(images), 16, 96))


def test_a_teacher_without_class_token_is_refused() -> None:
    recipe, objective, images, _ = steps_of(tiny("reg"))
    [batch] = batches_of(recipe, images, [])
    ask(NoClassToken(), (), batch)
    with pytest.raises(UserError, match="every teacher needs a class token"):
        recipe.method.losses(objective.model, batch, 0)


def test_more_components_than_numbers_are_refused() -> None:
    with pytest.raises(UserError, match="cls_dim 97: the class token of digits-vit has 96 numbers"):
        steps_of(tiny("reg", cls_dim=97))


# --- principal components


def test_components_are_uncorrelated_with_variance_one() -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    tokens = torch.randn(500, 12, generator=generator, dtype=torch.float64) @ mixing + 3
    mean, matrix = components(tokens, 5)
    narrow = (tokens - mean) @ matrix
    torch.testing.assert_close(torch.cov(narrow.T), torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(narrow.mean(0), torch.zeros(5, dtype=torch.float64))
    # the first of them: no direction has more variance
    variances = torch.linalg.eigvalsh(torch.cov(tokens.T)).flip(0)[:5]
    torch.testing.assert_close(matrix.norm(dim=0), variances.rsqrt())
    again = components(-tokens, 5)[1]
    torch.testing.assert_close(again, matrix)  # signs are fixed


def test_the_map_is_saved_with_the_model(trained: tuple[int, Path]) -> None:
    width, out = trained
    saved = state.load_checkpoint(out / "checkpoints" / "0000006.pt")
    names = {name for name in saved["ema"] if name in ("cls_mean", "cls_map")}
    assert names == ({"cls_mean", "cls_map"} if width else set())
    model = checkpoints.load(out / "checkpoints" / "0000006.pt").model
    assert model.class_token_width == (width or 96)
    tokens = clean_tokens()
    narrow = model.class_token(tokens)
    assert narrow.shape == (200, width or 96)
    if width:
        # fitted on all of `val`, of which these are a part
        torch.testing.assert_close(narrow.var(0), torch.ones(16), rtol=0.35, atol=0.0)
        assert equal_trees(*(saved[part]["cls_map"] for part in ("model", "ema")))
    else:
        assert narrow is tokens


# --- whatever opens its checkpoints


def test_it_samples_latent_and_class_token_together(trained: tuple[int, Path]) -> None:
    _, out = trained
    model = checkpoints.load(out / "checkpoints" / "0000006.pt").model
    for mode in ("ode", "sde"):
        [(_, images, _)] = generate(model, range(3), SamplerSettings(num_steps=3, options={"mode": mode}), batch_size=4)
        assert images.shape == (3, 1, 8, 8)


def test_align_probe_and_inspect_need_no_flag(trained: tuple[int, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "PROBE_TRAIN", 60)
    monkeypatch.setattr(splits, "PROBE_TEST", 30)
    file = str(trained[1] / "checkpoints" / "0000006.pt")
    quick = ["--timesteps", "0.1", "--device", "cpu", "--quiet", "--json"]
    for words in (["align", "--ckpt", file, "--num-images", "20", *quick], ["probe", "--ckpt", file, *quick]):
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 0, done.stderr
        assert {row["layer"] for row in json.loads(done.stdout)["rows"]} >= {1, 2}
    shown = json.loads(CliRunner().invoke(main, ["inspect", file, "--json"]).stdout)
    assert (shown["systems"], shown["class_token"], shown["teacher"]) == (["REG"], True, "digits-vit")


def test_a_converted_one_opens_again(trained: tuple[int, Path], tmp_path: Path) -> None:
    file = trained[1] / "checkpoints" / "0000006.pt"
    done = CliRunner().invoke(main, ["convert", str(file), "--to", str(tmp_path / "converted")])
    assert done.exit_code == 0, done.stderr
    model, again = checkpoints.load(file).model, checkpoints.load(tmp_path / "converted").model
    assert equal_trees(dict(model.state_dict()), dict(again.state_dict()))
    assert torch.equal(model.class_token(clean_tokens()), again.class_token(clean_tokens()))


def test_sweep_measures_it(trained: tuple[int, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "MAP_IMAGES", 20)
    monkeypatch.setattr(splits, "PROBE_TRAIN", 60)
    monkeypatch.setattr(splits, "PROBE_TEST", 30)
    chosen = (Preview, Probes, AlignmentMap, TokenColours)
    monkeypatch.setattr(suites, "all_monitors", lambda evaluated: [build(evaluated) for build in chosen])
    for expected in (True, False):
        done = CliRunner().invoke(main, ["sweep", str(trained[1]), "--device", "cpu", "--quiet", "--json"])
        assert done.exit_code == 0, done.output
        assert bool(json.loads(done.stdout)["rows"]) == expected
    assert len(list((trained[1] / "media").glob("pca-*.png"))) == 2
