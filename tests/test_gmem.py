"""GMem: the objective, the bank that travels with a checkpoint, and what its samples are conditioned on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor

from helpers import batches_of, digits, equal_trees, run, steps_of, tiny, wake
from repa_eval import checkpoints, results
from repa_eval.cli import main
from repa_eval.diffusion.conventions import REVERSED, Converted, as_project_convention, unwrap
from repa_eval.errors import UserError
from repa_eval.interfaces.teacher import Tokens, load_teacher
from repa_eval.memory_bank.bank import FullBank, compressed
from repa_eval.memory_bank.files import save_bank
from repa_eval.monitors import alignment
from repa_eval.probes import splits
from repa_eval.sampling.generate import SamplerSettings, generate, own_bank
from repa_eval.sampling.interpolation import images_between, pairs_of
from repa_eval.train import batches
from repa_eval.train.evaluated import evaluated_run, monitors_of
from repa_eval.train.recipe import read_recipe, resolve

FORMS: dict[str, dict[str, Any]] = {"full": {}, "svd": {"bank_form": "svd", "latent_dim": 8}}


@pytest.fixture(scope="module", params=FORMS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Form of the bank, and a run folder."""
    out = tmp_path_factory.mktemp("gmem") / "run"
    run(tiny("gmem", **FORMS[request.param]), out)
    return request.param, out


def last(out: Path) -> Path:
    return out / "checkpoints" / "0000006.pt"


def cli(*words: Any) -> Result:
    return CliRunner().invoke(main, [*map(str, words)])


def fails(done: Result, code: int, text: str) -> None:
    assert done.exit_code == code, done.output
    assert text in done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1


def snippets_of(images: Tensor, kind: str = "mean") -> Tensor:
    tokens = load_teacher("digits-vit")(images)
    assert tokens.cls is not None
    return tokens.cls if kind == "cls" else tokens.patches.mean(1)


# --- the objective


def told(**overrides: Any) -> tuple[Any, dict[str, Any]]:
    """A batch, and what the network was given for it."""
    recipe, objective, images, teachers = steps_of(tiny("gmem", **overrides))
    [batch] = batches_of(recipe, images, teachers)
    seen: dict[str, Any] = {}
    objective.model.register_forward_pre_hook(
        lambda _model, given, named: seen.update(x=given[0], t=given[1], y=given[2], keep=named["keep"]),
        with_kwargs=True,
    )
    objective.train()(batch, 0)
    return batch, seen


@pytest.mark.parametrize("kind", ["cls", "mean"])
def test_snippet_target_and_latent_are_of_one_image(kind: str) -> None:
    # published: three independent coins decide which of the three are mirrored
    batch, seen = told(snippet=kind)
    torch.testing.assert_close(seen["y"], F.normalize(snippets_of(batch.images, kind), dim=1))
    assert torch.equal(batch.x, batch.images.float() / 127.5 - 1)
    torch.testing.assert_close(batch.teachers[0], load_teacher("digits-vit")(batch.images).patches)
    t = 1 - seen["t"].reshape(-1, 1, 1, 1)
    torch.testing.assert_close(seen["x"], (1 - t) * batch.x + t * batch.draws["noise"])


def test_the_teacher_sees_each_image_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Tensor] = []
    ask = batches.ask
    monkeypatch.setattr(batches, "ask", lambda t, layers, batch: asked.append(batch.images) or ask(t, layers, batch))
    batch, _ = told()
    [images] = asked
    assert torch.equal(images, batch.images)


def test_time_is_lognormal_and_turned_for_the_network() -> None:
    batch, seen = told()
    torch.testing.assert_close(seen["t"], torch.sigmoid(-batch.draws["time"]))  # t = 1 is noise in the draws
    batch, seen = told(weighting="uniform")
    torch.testing.assert_close(seen["t"], 1 - batch.draws["time"])
    assert 0 <= float(batch.draws["time"].min()) < float(batch.draws["time"].max()) < 1


def test_entries_of_the_snippet_are_dropped_one_by_one() -> None:
    batch, seen = told(batch_size=64)
    keep = seen["keep"]
    assert keep.shape == seen["y"].shape == (64, 96)
    assert torch.equal(keep, (batch.draws["dropout"] >= 0.4).float())
    assert 0.57 < float(keep.mean()) < 0.63
    assert float(keep.mean(1).min()) > 0.4  # no snippet is dropped whole
    _, none = told(condition_dropout=0.0)
    assert bool(none["keep"].all())


def test_kept_entries_are_scaled_up_and_sampling_drops_none() -> None:
    _, objective, _, _ = steps_of(tiny("gmem"))
    model: Any = objective.model
    embedded: list[Tensor] = []
    model.condition_projection.register_forward_pre_hook(lambda _m, given: embedded.append(given[0]))
    x, t, y = torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.ones(1, 96)
    model(x, t, y, keep=torch.ones(1, 96))
    model(x, t, y)
    torch.testing.assert_close(embedded[0], torch.full((1, 96), 1 / 0.6))
    assert torch.equal(embedded[1], y)


def test_labels_are_read_nowhere() -> None:
    recipe, objective, images, teachers = steps_of(tiny("gmem"))
    wake(objective)
    values = []
    for label in (0, 9):
        [batch] = batches_of(recipe, images, teachers)
        batch.y = torch.full_like(batch.y, label)
        values.append(objective(batch, 0))
    assert equal_trees(*values)
    assert "labels" not in recipe.method.needs


def test_the_alignment_is_at_the_chosen_block() -> None:
    recipe, objective, images, teachers = steps_of(tiny("gmem", encoder_depth=2))
    [batch] = batches_of(recipe, images, teachers)
    taps: list[Any] = []
    objective.model.register_forward_pre_hook(lambda _m, _g, named: taps.append(named["taps"]), with_kwargs=True)
    objective(batch, 0)
    assert taps == [(2,)]


def test_coefficients_weigh_their_terms() -> None:
    values = []
    for coefficient in (1.0, 3.0):
        recipe, objective, images, teachers = steps_of(tiny("gmem", proj_coeff=coefficient, cosine_coeff=coefficient))
        wake(objective)
        [batch] = batches_of(recipe, images, teachers)
        values.append(objective(batch, 0))
    for name, factor in (("denoising_loss", 1), ("cosine_loss", 3), ("proj_loss", 3)):
        torch.testing.assert_close(values[1][name], factor * values[0][name])


# --- what cannot be trained


def test_a_teacher_without_a_class_token(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, objective, images, teachers = steps_of(tiny("gmem", snippet="cls", bank_form="none"))
    [batch] = batches_of(recipe, images, teachers)
    batch.class_tokens = [None]
    with pytest.raises(UserError, match="digits-vit has no class token to take snippets from: choose snippet=mean"):
        objective(batch, 0)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"encoder_depth": 0}, r"encoder_depth 0: this model has blocks 1\.\.2"),
        ({"enc_type": "None"}, "GMem takes its snippets from one"),
        ({"bank_form": "svd", "latent_dim": 97}, "latent_dim 97: snippets of digits-vit have 96 entries"),
    ],
)
def test_settings_that_cannot_be_trained(overrides: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        steps_of(tiny("gmem", **overrides))


def test_it_trains_nothing_but_its_own_network() -> None:
    with pytest.raises(UserError, match=r"method gmem does not train SiT-digits/2 \(SiT\), only LightningDiT"):
        resolve(read_recipe("digits-gmem"), {"model": "SiT-digits/2"})


# --- the bank in the checkpoint


def test_the_bank_lies_in_the_checkpoint_in_the_order_of_the_images(trained: tuple[str, Path]) -> None:
    form, out = trained
    for weights in ("ema", "online"):
        bank = own_bank(checkpoints.load(last(out), weights=weights).model)
        assert bank is not None
        assert (bank.form, len(bank), bank.width) == (form, 240, 96)
        images = digits("val")
        whole = FullBank(snippets_of(torch.from_numpy(images.images)))
        wanted = whole if form == "full" else compressed(whole, 8)
        torch.testing.assert_close(bank.read(torch.arange(240)), wanted.read(torch.arange(240)), rtol=1e-4, atol=1e-4)


def test_training_leaves_the_bank_as_it_is(trained: tuple[str, Path]) -> None:
    _, out = trained
    early, late = (torch.load(out / f"checkpoints/000000{step}.pt", weights_only=True) for step in (3, 6))
    names = [name for name in late["model"] if name.startswith("memory.")]
    assert names
    for name in names:
        for part in ("model", "ema"):
            assert torch.equal(early["model"][name], late[part][name])


def test_a_model_with_its_bank_opens_wherever_it_goes(trained: tuple[str, Path], tmp_path: Path) -> None:
    form, out = trained
    opened = checkpoints.load(last(out))
    done = cli("convert", last(out), "--to", tmp_path / "folder")
    assert done.exit_code == 0, done.output
    torch.save(unwrap(opened.model).state_dict(), tmp_path / "bare.pt")
    assert (
        opened.info()["memory_bank"] == {"full": "240 snippets, full", "svd": "240 snippets, svd, 8 directions"}[form]
    )
    for path in (tmp_path / "folder", tmp_path / "bare.pt"):
        again = checkpoints.load(path, overrides={} if path.is_dir() else {"num_heads": 2})
        assert again.systems == ("GMem",)
        bank = own_bank(again.model)
        assert bank is not None
        assert bank.form == form
        assert equal_trees(bank.tensors(), own_bank(opened.model).tensors())  # type: ignore[union-attr]


def test_samples_of_the_own_bank_are_those_of_the_same_bank_in_a_file(
    trained: tuple[str, Path], tmp_path: Path
) -> None:
    _, out = trained
    bank = own_bank(checkpoints.load(last(out)).model)
    assert bank is not None
    save_bank(bank, tmp_path / "bank.pth")
    fast = ("--num", 6, "--num-steps", 3, "--sampling-method", "euler", "--device", "cpu", "--quiet", "--json")
    records = []
    for name, words in (("own", ()), ("file", ("--bank", tmp_path / "bank.pth"))):
        done = cli("sample", "--ckpt", last(out), *fast, *words, "--out", tmp_path / f"{name}.npz")
        assert done.exit_code == 0, done.output
        records.append(json.loads(done.stdout)["record"])
    own, file = (np.load(tmp_path / f"{name}.npz") for name in ("own", "file"))
    assert np.array_equal(own["arr_0"], file["arr_0"])
    assert np.array_equal(own["arr_1"], file["arr_1"])  # the rows that were drawn
    assert [record["labels"] for record in records] == ["snippets", "snippets"]
    assert records[0]["bank"] == "the checkpoint's"
    assert "bank_hash" in records[1]


def test_a_checkpoint_without_its_bank(tmp_path: Path) -> None:
    recipe = tiny("gmem", bank_form="none", eval_every=3, num_samples=8, final_samples=8)
    out = tmp_path / "run"
    assert not evaluated_run(recipe, out).generates
    assert monitors_of(recipe, out) == []
    run(recipe, out)
    saved = torch.load(last(out), weights_only=True)
    assert not [name for name in saved["model"] if name.startswith("memory")]
    assert saved["recipe"]["architecture"]["bank_size"] == 0
    done = cli("sample", "--ckpt", last(out), "--num", 2, "--out", tmp_path / "out", "--device", "cpu")
    fails(done, 2, "this model draws from a memory bank: name it with --bank FILE")


def test_bank_files_that_do_not_fit_the_model(trained: tuple[str, Path], tmp_path: Path) -> None:
    _, out = trained
    save_bank(FullBank(torch.ones(5, 7)), tmp_path / "narrow.pth")
    save_bank(compressed(FullBank(torch.randn(9, 7)), 2), tmp_path / "small.safetensors")
    for name in ("narrow.pth", "small.safetensors"):
        done = cli("sample", "--ckpt", last(out), "--bank", tmp_path / name, "--out", tmp_path / "x", "--device", "cpu")
        fails(done, 2, "this model needs (N, 96)")


def test_a_bank_of_the_users_replaces_the_own_one(trained: tuple[str, Path]) -> None:
    _, out = trained
    model = checkpoints.load(last(out)).model
    seen: list[Tensor] = []
    unwrap(model).condition_projection.register_forward_pre_hook(lambda _m, given: seen.append(given[0]))
    other = FullBank(torch.eye(96)[:1] * 5)
    [(_, _, rows)] = generate(model, range(4), SamplerSettings(family="repa", num_steps=1), snippets=other)
    assert rows.tolist() == [0] * 4
    assert torch.equal(seen[0][:4], torch.eye(96)[:1].expand(4, -1))


# --- measures


def test_the_trainer_measures_what_the_sweep_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "MAP_IMAGES", 40)
    monkeypatch.setattr(splits, "PROBE_TRAIN", 60)
    monkeypatch.setattr(splits, "PROBE_TEST", 30)
    out = tmp_path / "run"
    settings = {"eval_every": 3, "evaluation.num_samples": 16, "evaluation.num_steps": 2, "final_samples": 0}
    recipe = tiny("gmem", **settings)
    run(recipe, out, monitors=monitors_of(recipe, out))
    rows = [row for row in results.read(out) if row.metric == "fd_digits"]
    assert [row.step for row in rows] == [3, 6]
    record = results.read_protocols(out)[rows[0].protocol or ""]
    assert {
        "labels": "snippets",
        "bank": "the checkpoint's, full",
        "solver": "euler",
        "uint8": "floor",
    }.items() <= record.items()
    media = {path.name for path in (out / "media").iterdir()}
    assert {"interpolation-0000006.png", "interpolation-0000006.json", "samples-0000003.png"} <= media
    words = json.loads((out / "media/interpolation-0000006.json").read_text())
    picture = np.asarray(Image.open(out / "media/interpolation-0000006.png"))
    assert picture.shape == (10 * len(words["rows"]), 10 * words["columns"]) == (80, 80)
    for place, row in enumerate(words["rows"]):  # the images that the snippets are of stand at both ends
        for column, index in zip((0, 7), map(int, row.split(" to ")), strict=True):
            tile = picture[10 * place + 1 : 10 * place + 9, 10 * column + 1 : 10 * column + 9]
            assert np.array_equal(tile, digits("val").images[index, 0])
    before = (out / "media/interpolation-0000006.png").read_bytes(), (out / "media/samples-0000006.png").read_bytes()
    for file in ("interpolation-0000006.png", "samples-0000006.png"):
        (out / "media" / file).unlink()
    done = cli("sweep", out, "--device", "cpu", "--json", "--quiet")
    assert done.exit_code == 0, done.output
    added = json.loads(done.stdout)["rows"]
    assert not [row for row in added if row["metric"] == "fd_digits"]  # found again: the same protocol
    assert {"cknna", "probe_accuracy", "fd_digits_floor"} <= {row["metric"] for row in added}
    after = (out / "media/interpolation-0000006.png").read_bytes(), (out / "media/samples-0000006.png").read_bytes()
    assert before == after  # a model in training and one opened from its checkpoint are the same
    assert json.loads(cli("sweep", out, "--device", "cpu", "--json", "--quiet").stdout)["rows"] == []


def test_it_is_measured_with_the_sampler_that_its_record_names(trained: tuple[str, Path]) -> None:
    _, out = trained
    model = checkpoints.load(last(out)).model
    settings = evaluated_run(tiny("gmem"), out).sampler(4)
    times: list[float] = []
    unwrap(model).register_forward_pre_hook(lambda _m, given: times.append(float(given[1][0])))
    list(generate(model, range(2), settings, batch_size=2))
    assert times == [0, 0.25, 0.5, 0.75]  # four Euler steps, not those that the published sampler would choose
    assert settings.record()["solver"] == "euler"


def test_a_network_in_reversed_time_is_turned_once() -> None:
    _, objective, _, _ = steps_of(tiny("gmem"))
    turned = as_project_convention(objective.model)
    assert (turned.native, isinstance(turned, Converted)) == (REVERSED, True)
    assert as_project_convention(turned) is turned
    other = steps_of(tiny("vanilla"))[1].model
    assert as_project_convention(other) is other
    plain = torch.nn.Linear(1, 1)
    assert as_project_convention(plain) is plain


# --- between two snippets


def test_the_ends_of_the_way_are_the_snippets_own_images(trained: tuple[str, Path]) -> None:
    _, out = trained
    model = checkpoints.load(last(out)).model
    bank = own_bank(model)
    assert bank is not None
    seen: list[Tensor] = []
    unwrap(model).condition_projection.register_forward_pre_hook(lambda _m, given: seen.append(given[0]))
    settings = SamplerSettings(family="repa", num_steps=1)
    images = images_between(model, bank, [(3, 50), (50, 3)], settings, steps=4)
    assert images.shape == (2, 4, 1, 8, 8)
    ends = bank.conditions(torch.tensor([3, 50]))
    torch.testing.assert_close(seen[0][[0, -1]], ends)
    torch.testing.assert_close(seen[1], seen[0].flip(0))  # there and back, but from other noise
    assert not torch.equal(images[0], images[1].flip(0))
    alone = images_between(model, bank, [(3, 50)], settings, steps=4)
    assert torch.equal(alone[0], images[0])  # whatever the other pairs are


def test_pairs_are_of_two_rows_each() -> None:
    pairs = pairs_of(300, 3, seed=0)
    assert all(a != b and 0 <= a < 3 and 0 <= b < 3 for a, b in pairs)
    assert len(set(pairs)) == 6
    assert pairs_of(5, 3, seed=0) == pairs[:5]
    assert pairs_of(5, 3, seed=1) != pairs[:5]


def test_a_picture_of_the_way_by_hand(trained: tuple[str, Path], tmp_path: Path) -> None:
    _, out = trained
    words = ("sample", "--ckpt", last(out), "--num-steps", 2, "--sampling-method", "euler", "--device", "cpu")
    made = {}
    for method, count in (("linear", 6), ("spherical", 6), ("mask", 3)):
        file = tmp_path / f"{method}.png"
        number = () if count == 6 else ("--num", count)
        done = cli(*words, "--interpolate", "3,50", "--interpolation", method, *number, "--out", file, "--json")
        assert done.exit_code == 0, done.output
        assert Image.open(file).size == (10 * count, 10)
        record = json.loads(file.with_name(f"{method}.png.json").read_text())
        assert record == json.loads(done.stdout)["record"]
        assert (record["rows"], record["interpolation"]) == ([3, 50], method)
        made[method] = np.asarray(Image.open(file))
    assert np.array_equal(made["linear"][:, :10], made["spherical"][:, :10])
    assert not np.array_equal(made["linear"], made["spherical"])
    for given, text in (
        ("3", "--interpolate '3': expected two row numbers, for example 12,345"),
        ("3,240", "snippet 240: this memory bank has rows 0..239"),
    ):
        fails(cli(*words, "--interpolate", given, "--out", tmp_path / "x.png"), 2, text)
    fails(cli(*words, "--interpolate", "3,5", "--out", tmp_path / "x"), 2, "makes one picture, a .png")
    fails(cli(*words, "--interpolation", "mask", "--out", tmp_path / "x"), 2, "name the two rows with --interpolate")
    assert not (tmp_path / "x").exists()


def test_a_model_with_labels_has_no_snippets_to_go_between(tmp_path: Path) -> None:
    run(tiny("vanilla"), tmp_path / "run")
    done = cli("sample", "--ckpt", last(tmp_path / "run"), "--interpolate", "1,2", "--out", tmp_path / "x.png")
    fails(done, 2, "--interpolate: this model is conditioned on labels")


# --- the published settings


def test_the_imagenet_recipe_is_the_published_one() -> None:
    recipe = resolve(read_recipe("imagenet/gmem"))
    settings = recipe.settings
    assert (settings.optim.learning_rate, settings.optim.adam_beta1, settings.optim.adam_beta2) == (2e-4, 0.9, 0.95)
    assert (settings.optim.weight_decay, settings.optim.max_grad_norm, settings.optim.schedule) == (0, 1, "constant")
    assert (settings.batch_size, settings.max_steps, settings.mixed_precision) == (1024, 200_000, "bf16")
    assert settings.ema.ema_decay == 0.9999
    assert settings.max_steps * settings.batch_size // 1_281_167 == 159  # epochs
    method = recipe.method
    assert (method.encoder_depth, method.proj_coeff, method.cosine_coeff) == (4, 0.5, 1.0)  # type: ignore[attr-defined]
    assert (method.interpolant.weighting, method.snippet) == ("lognormal", "cls")  # type: ignore[attr-defined]
    assert recipe.architecture.condition_dropout == 0.4


def test_a_teacher_with_a_class_token_answers_with_tokens() -> None:
    # the snippets of training, of the bank in the checkpoint and of a prepared file are one function of uint8 images:
    # the published generator feeds [0, 1] images to a function that expects [-1, 1]
    tokens = load_teacher("digits-vit")(torch.from_numpy(digits("val").images[:2]))
    assert isinstance(tokens, Tokens)
    with pytest.raises(UserError, match="reads 1x8x8 images"):
        load_teacher("digits-vit")(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
