"""Architectures and the networks that ship: shapes, positions, taps, calibration, and the numbers on their cards."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from helpers import digits, run, tiny, wake
from repa_eval import checkpoints, results
from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.errors import UserError
from repa_eval.interfaces.extractor import load_extractor
from repa_eval.interfaces.images import to_signed
from repa_eval.interfaces.teacher import load_teacher
from repa_eval.models.encoders.cnn import CNN, CNNConfig
from repa_eval.models.encoders.conv_vit import ConvViT, ConvViTConfig
from repa_eval.models.shared.blocks import unpatchify
from repa_eval.models.shared.layers import Attention, TimestepEmbedder, projector, sincos_table
from repa_eval.models.sit import SiT, SiTConfig
from repa_eval.probes.encoder import classifier_facts, encoder_facts
from repa_eval.runtime.hashing import digest_module
from repa_eval.train.recipe import read_recipe, resolve

WEIGHTS = Path(str(files("repa_eval") / "weights"))
SMALL = {"input_size": 8, "in_channels": 1, "num_classes": 10, "hidden_size": 32, "depth": 3, "num_heads": 2}


def seeded(cls: type[nn.Module], config: object) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return cls(config).eval()


def sit(**changes: object) -> SiT:
    return seeded(SiT, SiTConfig(**{**SMALL, **changes}))


def batch(count: int = 4, side: int = 8, channels: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, channels, side, side, generator=generator)
    return x, torch.linspace(0.1, 0.9, count), torch.arange(count) % 11


# --- SiT


def test_a_fresh_model_outputs_zero() -> None:
    velocity, hidden = sit()(*batch())
    assert velocity.shape == (4, 1, 8, 8)
    assert not velocity.any()
    assert hidden == {}


@pytest.mark.parametrize("taps", [(), (1,), (3, 0), (0, 1, 2, 3)])
def test_asking_for_taps_does_not_change_the_output(taps: tuple[int, ...]) -> None:
    model = sit()
    wake(model)
    expected, _ = model(*batch())
    velocity, hidden = model(*batch(), taps=taps)
    assert torch.equal(velocity, expected)
    assert expected.abs().max() > 0.1
    assert set(hidden) == set(taps)
    assert all(tokens.shape == (4, 16, 32) for tokens in hidden.values())


def test_taps_are_outputs_of_blocks() -> None:
    model = sit()
    wake(model)
    x, t, y = batch()
    _, hidden = model(x, t, y, taps=(0, 1, 2, 3))
    assert torch.equal(hidden[0], model.x_embedder(x) + model.pos_embed)
    condition = model.t_embedder(t) + model.y_embedder(y)
    for layer, block in enumerate(model.blocks, 1):
        assert torch.equal(hidden[layer], block(hidden[layer - 1], condition))
    assert len({tokens.sum().item() for tokens in hidden.values()}) == 4


@pytest.mark.parametrize("layer", [-1, 4])
def test_a_tap_that_does_not_exist(layer: int) -> None:
    with pytest.raises(UserError, match=rf"layer {layer}: this model has blocks 1\.\.3"):
        sit()(*batch(), taps=(layer,))


@pytest.mark.parametrize(("patch", "channels"), [(2, 1), (4, 3), (1, 2)])
def test_unpatchify_is_the_inverse_of_patchify(patch: int, channels: int) -> None:
    model = sit(patch_size=patch, in_channels=channels)
    x, _, _ = batch(channels=channels)
    side = 8 // patch
    # cut by hand, patch by patch: row by row, within a patch pixel by pixel, channels last
    patches = torch.stack(
        [
            x[:, :, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch].permute(0, 2, 3, 1).flatten(1)
            for r in range(side)
            for c in range(side)
        ],
        dim=1,
    )
    assert torch.equal(unpatchify(patches, model.config.patch_size), x)


def test_tokens_are_ordered_as_unpatchify_expects() -> None:
    model = sit()
    with torch.no_grad():
        model.x_embedder.proj.weight.zero_()
        model.x_embedder.proj.bias.zero_()
        model.x_embedder.proj.weight[0] = 1.0
    x = torch.zeros(1, 1, 8, 8)
    x[0, 0, 2:4, 6:8] = 1.0  # second row, fourth column
    assert model.x_embedder(x)[0, :, 0].nonzero().flatten().tolist() == [1 * 4 + 3]


def test_labels_and_time_condition_the_output() -> None:
    model = sit()
    wake(model)
    x, t, y = batch()
    base, _ = model(x, t, y)
    for changed in ((x, t, (y + 1) % 11), (x, t + 0.05, y), (x + 0.1, t, y)):
        assert not torch.allclose(model(*changed)[0], base, atol=1e-5)
    assert model.null_label == 10
    assert sit().y_embedder.embedding_table.weight.shape == (11, 32)
    assert sit(class_dropout_prob=0.0).y_embedder.embedding_table.weight.shape == (10, 32)


def test_images_of_a_batch_do_not_mix() -> None:
    model = sit()
    wake(model)
    x, t, y = batch()
    whole, _ = model(x, t, y)
    for i in range(4):
        torch.testing.assert_close(
            model(x[i : i + 1], t[i : i + 1], y[i : i + 1])[0], whole[i : i + 1], rtol=0, atol=1e-5
        )


def test_projectors() -> None:
    assert [key for key in sit().state_dict() if key.startswith("projectors")] == []
    model = sit(z_dims=(96, 48), projector_dim=64)
    assert [head(torch.zeros(1, 16, 32)).shape[-1] for head in model.projectors] == [96, 48]
    assert [type(layer).__name__ for layer in projector(4, 5, 6)] == ["Linear", "SiLU", "Linear", "SiLU", "Linear"]


def test_with_and_without_teachers_the_weights_start_alike() -> None:
    plain, aligned = sit().state_dict(), sit(z_dims=(96,)).state_dict()
    assert all(torch.equal(value, aligned[key]) for key, value in plain.items())
    assert list(aligned)[-4:] == list(plain)[-4:]  # in the published order, the projectors before the last layer


def test_sizes_of_the_paper() -> None:
    for name, millions in {"SiT-B/2": 130, "SiT-XL/2": 675}.items():
        with torch.device("meta"):
            recipe = resolve({"method": "vanilla", "model": name})
            model = SiT(recipe.architecture)
        assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


def test_options_of_attention_agree() -> None:
    fused, plain = (Attention(32, 4, fused_attn=fused) for fused in (True, False))
    plain.load_state_dict(fused.state_dict())
    x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-5, atol=1e-6)
    assert isinstance(Attention(32, 4, qk_norm=True).q_norm, nn.LayerNorm)
    with pytest.raises(UserError, match="hidden_size 32 is not a multiple of num_heads 5"):
        Attention(32, 5)


def test_a_patch_that_does_not_fit() -> None:
    with pytest.raises(UserError, match="patch_size 3 does not divide the latent's side 8"):
        sit(patch_size=3)


# --- positions and times


def test_positions_code_the_column_first() -> None:
    width, side = 16, 4
    table = sincos_table(width, side).reshape(side, side, width)
    omega = 10000.0 ** -(np.arange(4) / 4)
    for row in range(side):
        for column in range(side):
            by_hand = [f(place * omega) for place in (column, row) for f in (np.sin, np.cos)]
            np.testing.assert_allclose(table[row, column].numpy(), np.concatenate(by_hand), atol=1e-6)
    swapped = torch.cat([table[..., 8:], table[..., :8]], dim=-1)
    assert not torch.allclose(swapped, table)
    with pytest.raises(UserError, match="hidden_size 30 is not a multiple of 4"):
        sincos_table(30, 4)


def test_times_are_not_multiplied_by_a_thousand() -> None:
    embedder = TimestepEmbedder(8)
    seen: list[Tensor] = []
    embedder.mlp = nn.Sequential(nn.Linear(256, 256))
    embedder.mlp[0].register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    embedder(torch.tensor([0.3]))
    frequencies = np.exp(-np.log(10000) * np.arange(128) / 128)
    expected = np.concatenate([np.cos(0.3 * frequencies), np.sin(0.3 * frequencies)])
    np.testing.assert_allclose(seen[0][0].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("path_type", ["linear", "cosine"])
def test_the_path_ends_in_data_and_noise(path_type: str) -> None:
    path = Interpolant(path_type=path_type)
    x, noise = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    zeros, ones = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(path.mix(x, noise, zeros), x)
    torch.testing.assert_close(path.mix(x, noise, ones), noise)
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    slope = (path.mix(x, noise, t + 1e-6) - path.mix(x, noise, t - 1e-6)) / 2e-6
    torch.testing.assert_close(path.velocity(x, noise, t), slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("path_type", ["linear", "cosine"])
def test_times_of_training(path_type: str) -> None:
    draws = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    times = Interpolant(path_type=path_type, weighting="lognormal").times(draws)
    assert 0 < float(times.min()) < float(times.max()) < 1
    assert float(times.median()) == pytest.approx(0.5, abs=0.02)
    uniform = torch.rand(10)
    assert torch.equal(Interpolant().times(uniform), uniform)


# --- the networks that ship


def test_shapes_of_the_small_networks() -> None:
    x, _, _ = batch()
    tokens, hidden = seeded(ConvViT, ConvViTConfig())(x, taps=(0, 2))
    assert tokens.shape == (4, 17, 96)
    assert {layer: state.shape for layer, state in hidden.items()} == {0: (4, 17, 96), 2: (4, 17, 96)}
    logits, hidden = seeded(CNN, CNNConfig())(x, taps=(1,))
    assert (logits.shape, hidden[1].shape) == ((4, 10), (4, 64))
    assert hidden[1].min().item() == 0


def test_calibration_sets_the_statistics_of_the_features() -> None:
    network, images = seeded(ConvViT, ConvViTConfig()), to_signed(torch.from_numpy(digits("train").head(600).images))
    network.calibrate(images)
    assert not network.training
    tokens = network(images)[0][:, 1:]
    scaled = (tokens - network.feature_mean) / network.feature_std
    torch.testing.assert_close(scaled.mean((0, 1)), torch.zeros(96), rtol=0, atol=1e-3)
    torch.testing.assert_close(scaled.flatten(0, 1).std(0), torch.ones(96), rtol=0, atol=1e-3)
    # batch norm holds the statistics of the very images
    norm = network.stem[1]
    first = network.stem[0](images)
    torch.testing.assert_close(norm.running_mean, first.mean((0, 2, 3)), rtol=1e-2, atol=1e-2)
    assert norm.momentum == 0.1
    before = digest_module(network)
    network.calibrate(images)
    assert digest_module(network) == before


@pytest.mark.parametrize("name", ["digits-vit", "digits-judge"])
def test_shipped_files(name: str) -> None:
    config, card = json.loads((WEIGHTS / f"{name}.json").read_text()), (WEIGHTS / f"{name}.md").read_text()
    assert (WEIGHTS / f"{name}.safetensors").stat().st_size < 1.2e6
    tensors = load_file(WEIGHTS / f"{name}.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    assert config["recipe"]["name"] == name
    made_by = resolve(config["recipe"])
    shipped = resolve(read_recipe(name))
    assert made_by.settings == shipped.settings  # the recipe still says how they were made
    assert made_by.method == shipped.method
    assert config["step"] == shipped.settings.max_steps
    assert f"# {name}" in card
    digest = load_teacher(name).digest if name == "digits-vit" else load_extractor("digits").digest
    assert f"hash {digest}" in card


def facts_of(card: Path) -> dict[str, float]:
    found = re.findall(r"^- ([^:\n]+(?: \(k 20\))?): (\d\.\d{3})$", card.read_text(), re.MULTILINE)
    return {name: float(value) for name, value in found}


def test_the_numbers_on_the_cards_are_reproduced() -> None:
    teacher = encoder_facts(load_teacher("digits-vit").network, digits("train"), digits("test-large"))
    judge = classifier_facts(load_extractor("digits").network, digits("test-large"))
    for name, found in {"digits-vit": teacher, "digits-judge": judge}.items():
        written = facts_of(WEIGHTS / f"{name}.md")
        assert set(written) == set(found)
        for fact, value in written.items():
            assert found[fact] == pytest.approx(value, abs=0.005), fact


def test_what_the_shipped_networks_are_good_for() -> None:
    teacher, judge = facts_of(WEIGHTS / "digits-vit.md"), facts_of(WEIGHTS / "digits-judge.md")
    assert teacher["linear accuracy of the mean token"] > 0.9 > teacher["for comparison, linear accuracy of raw pixels"]
    assert teacher["linear accuracy of one inked patch token"] > 0.75
    assert min(judge.values()) > 0.98


def test_teachers_are_frozen_and_scale_their_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repa_eval.teachers.digits_vit.load_data", lambda *_: digits("train").head(2000))  # faster
    images = digits("train").pixels(range(2000))
    teachers = {name: load_teacher(name) for name in ("digits-vit", "digits-vit-random")}
    for teacher in teachers.values():
        assert not teacher.training
        assert not any(parameter.requires_grad for parameter in teacher.parameters())
        tokens = teacher(images)
        assert tokens.patches.shape == (2000, 16, teacher.width)
        assert tokens.cls.shape == (2000, teacher.width)
        assert float(tokens.patches.mean()) == pytest.approx(0, abs=0.02)
        assert float(tokens.patches.flatten(0, 1).std(0).mean()) == pytest.approx(1, abs=0.05)
    torch.manual_seed(5)
    assert load_teacher("digits-vit-random").digest == teachers["digits-vit-random"].digest
    assert teachers["digits-vit-random"].digest != teachers["digits-vit"].digest


def test_the_teachers_training_in_short(tmp_path: Path) -> None:
    # sixty steps of the recipe: a lower loss, and better per patch than an untrained network
    recipe = resolve(read_recipe("digits-vit"), {"max_steps": 60, "checkpoint_every": 60, "log_every": 5})
    network = checkpoints.load(run(recipe, tmp_path / "vit"), weights="online").model  # the average lags far behind
    rows = results.read(tmp_path / "vit" / "log.jsonl")
    contrast = [row.value for row in rows if row.metric == "contrastive_loss"]
    assert contrast[-1] < contrast[0] - 0.2
    pool, test = digits("train").head(2000), digits("test-large").head(1000)
    random = seeded(ConvViT, ConvViTConfig())
    for each in (network, random):
        each.calibrate(to_signed(torch.from_numpy(pool.images)))
    name = "linear accuracy of one inked patch token"
    trained, untrained = (encoder_facts(each, pool, test)[name] for each in (network, random))
    assert trained > untrained + 0.03, (trained, untrained)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits-vit", "digits-judge"])
def test_the_shipped_networks_can_be_made_again(name: str, tmp_path: Path) -> None:
    network = checkpoints.load(run(resolve(read_recipe(name)), tmp_path / name)).model
    pool, test = digits("train"), digits("test-large")
    if isinstance(network, ConvViT):
        network.calibrate(to_signed(torch.from_numpy(pool.images)))
        found = encoder_facts(network, pool, test)
    else:
        found = classifier_facts(network, test)
    for fact, value in facts_of(WEIGHTS / f"{name}.md").items():
        assert found[fact] == pytest.approx(value, abs=0.03), fact


def test_another_architecture_is_one_preset_away() -> None:
    assert tiny("vanilla", depth=4).architecture.depth == 4
