"""SoftREPA: captions, the base, the loss, what trains and what does not, the traps of the published code."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from helpers import batches_of, finish, launch, run, steps_of, tiny, tiny_base, wake
from repa_eval import checkpoints
from repa_eval.errors import UserError
from repa_eval.evaluation.caption_classifier import pair_judge
from repa_eval.interfaces.architecture import architectures_for
from repa_eval.interfaces.images import load_data
from repa_eval.interfaces.method import METHODS, Batch
from repa_eval.models.mmdit import MMDiT, MMDiTConfig
from repa_eval.models.shared.soft_tokens import SoftTokens, build_unet
from repa_eval.models.shared.text_encoder import encode
from repa_eval.models.text_to_image import MMDiTText, MMDiTTextConfig
from repa_eval.runtime.hashing import digest_module
from repa_eval.train import stages, state
from repa_eval.train.contrastive_loss import contrastive_losses, pair_errors
from repa_eval.train.methods.softrepa import EMBEDDED, SoftREPA
from repa_eval.train.recipe import builtin_recipes, read_recipe, resolve

WEIGHTS = Path(checkpoints.__file__).parent.parent / "weights"
BASE_HASH = "549db4b8d01a"
TRAIN, VAL, TEST = "0d5acd14d877", "fac4983df8e4", "90497555c989"
THREE = [-1.18656, -0.057595]  # the first numbers of "three" at the second place


# --- data, text, judge


@pytest.mark.parametrize(("split", "count"), [("train", 12_000), ("reference", 4_000), ("val", 1_000), ("test", 4_000)])
def test_a_split_shows_what_its_captions_say(split: str, count: int) -> None:
    images = load_data("digits-captions", split)
    assert images.images.shape == (count, 1, 8, 16)
    assert images.class_names[37] == "a three left of a seven"
    assert len(set(images.class_names)) == images.num_classes == 100
    assert set(images.labels.tolist()) == set(range(100))
    right = pair_judge().right(images.images, images.labels)
    assert right.mean() > (0.995 if split != "test" else 0.98)  # the judge has seen the digits of the others


def test_no_digit_is_in_two_splits() -> None:
    halves = {}
    for split in ("train", "val", "test"):
        images = load_data("digits-captions", split).images
        halves[split] = {half.tobytes() for half in np.concatenate([images[..., :8], images[..., 8:]])}
    assert len(halves["train"]) <= 1197
    for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not halves[a] & halves[b], (a, b)
    train, reference = (load_data("digits-captions", split) for split in ("train", "reference"))
    assert np.array_equal(train.images[:4000], reference.images)


def test_the_captioned_data_never_change() -> None:
    found = {split: load_data("digits-captions", split).digest() for split in ("train", "val", "test")}
    assert found == {"train": TRAIN, "val": VAL, "test": TEST}
    with pytest.raises(UserError, match="no split 'trainval'; choose one of train, reference, val, test"):
        load_data("digits-captions", "trainval")
    with pytest.raises(UserError, match="takes no name after the colon"):
        load_data("digits-captions:other", "train")


def test_the_text_never_changes() -> None:
    text = encode(["a three left of a seven", "a seven left of a three", ""])
    assert text.shape == (3, 8, 64)
    assert text[0, 1, :2].tolist() == pytest.approx(THREE, abs=1e-6)
    changed = (text[0] != text[1]).any(dim=1)
    assert changed.tolist() == [False, True, False, False, False, True, False, False]
    assert torch.equal(text[2, 7], text[0, 7])  # the empty word
    assert not torch.equal(text[2, 0], text[2, 1])  # a place shows
    assert torch.equal(encode(["A THREE left of a seven"])[0], text[0])
    with pytest.raises(UserError, match="has 9 words; the text encoder reads 8"):
        encode(["a b c d e f g h i"])


def test_the_judge_reads_digits_that_it_has_not_seen() -> None:
    judge = pair_judge()
    assert judge.accuracy == pytest.approx(357 / 360)
    images = load_data("digits-captions", "test").head(200)
    swapped = 10 * (images.labels % 10) + images.labels // 10
    assert judge.right(images.images, images.labels).all(1).mean() > 0.95
    different = swapped != images.labels
    assert judge.right(images.images, swapped)[different].all(1).mean() < 0.05
    with pytest.raises(UserError, match="reads images of 1x8x16, not 1x8x8"):
        judge.read(np.zeros((2, 1, 8, 8), np.uint8))


# --- the base


def test_the_embedded_base() -> None:
    file = WEIGHTS / f"{EMBEDDED}.safetensors"
    assert sum(path.stat().st_size for path in WEIGHTS.glob(f"{EMBEDDED}.*")) < 3_000_000
    opened = checkpoints.load(file)
    assert digest_module(opened.network) == BASE_HASH
    assert BASE_HASH in (WEIGHTS / f"{EMBEDDED}.md").read_text(encoding="utf-8")
    assert sum(p.numel() for p in opened.network.base_model.parameters()) == 585_604
    assert opened.model.image_shape == (1, 8, 16)
    assert (opened.systems, opened.recipe["name"], opened.step) == (("SD3",), EMBEDDED, 4000)
    recipe = resolve(read_recipe(EMBEDDED)).to_dict()
    for key in ("method", "options", "batch_size", "max_steps", "optim", "ema", "data", "seed"):
        assert opened.recipe[key] == recipe[key], key


def test_the_base_knows_its_captions_but_not_well() -> None:
    # velocity errors at t = 0.6: the true caption beats the swapped one most of the time
    model, images = checkpoints.load(WEIGHTS / f"{EMBEDDED}.safetensors").model, load_data("digits-captions", "test")
    pixels, labels = images.pixels(range(64)), torch.from_numpy(images.all_labels()[:64])
    swapped = 10 * (labels % 10) + labels // 10
    x, noise = pixels.float() / 127.5 - 1, torch.randn(64, 1, 8, 16, generator=torch.Generator().manual_seed(0))
    errors = [
        (model(0.4 * x + 0.6 * noise, torch.full((64,), 0.6), y)[0] - (noise - x)).square().flatten(1).mean(1)
        for y in (labels, swapped)
    ]
    wins = (errors[0] < errors[1])[labels != swapped].float().mean()
    assert 0.8 < float(wins) <= 1


def test_words_of_other_captions_are_put_in() -> None:
    recipe, objective, images, _ = steps_of(tiny("t2i", batch_size=400, word_noise=0.3, cfg_prob=0.1))
    [batch] = batches_of(recipe, images, [])
    method, model = recipe.method, objective.model
    text = method.text(model, batch)
    own, empty = model.context[batch.y], model.context[-1]
    dropped = (text == empty).flatten(1).all(1)
    assert float(dropped.float().mean()) == pytest.approx(0.1, abs=0.04)
    kept = ~dropped
    changed = (text != own).any(dim=2)[kept].float().mean(0)
    assert changed[[0, 2, 3, 4, 6, 7]].tolist() == [0.0] * 6  # words that all captions share
    for place in (1, 5):  # of 30 %, a tenth is the same digit again
        assert float(changed[place]) == pytest.approx(0.27, abs=0.06)
    clean = dataclasses.replace(method, word_noise=0.0, cfg_prob=0.0).text(model, batch)
    assert torch.equal(clean, own)


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("t2i", {"data": "digits"}, None),
        ("t2i", {"num_tokens": 2}, "num_tokens: this method trains the plain network"),
        ("softrepa", {"temp": 0.0}, r"temp: 0\.0 is not allowed"),
        ("softrepa", {"layers": 9}, r"layers 9: the base has blocks 1\.\.2; -1 means all"),
        ("softrepa", {"data": "digits"}, r"its input_size is 16, that of the data is 8"),
        ("softrepa", {"base": "nowhere.pt"}, "checkpoint 'nowhere.pt' does not exist"),
        ("softrepa", {"model": "MMDiT-digits"}, "is another network than the recipe's model: add model=SD3-digits"),
        ("softrepa", {"batch_size": 1}, "one caption cannot be told from others: set batch_size to 2 or more"),
    ],
)
def test_settings_that_cannot_be_used(name: str, more: dict[str, Any], message: str | None, tmp_path: Path) -> None:
    more = {"max_steps": 1, **more}
    if message is None:  # digits have names of classes, which are captions of one word
        run(tiny(name, **more), tmp_path / "run")
        return
    with pytest.raises(UserError, match=message):
        run(tiny(name, **more), tmp_path / "run")


def test_a_base_that_is_none(tmp_path: Path) -> None:
    other = run(tiny("vanilla"), tmp_path / "vanilla")
    with pytest.raises(UserError, match="without its text encoder"):
        run(tiny("softrepa", base=str(other)), tmp_path / "run")
    done = run(tiny("softrepa"), tmp_path / "soft")
    with pytest.raises(UserError, match="has soft tokens already"):
        run(tiny("softrepa", base=str(done)), tmp_path / "twice")


def test_what_a_missing_diffusers_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r"Stable Diffusion 3 needs diffusers: pip install 'repa-eval\[latents\]'"):
        checkpoints.load(WEIGHTS / f"{EMBEDDED}.safetensors")
    with pytest.raises(UserError, match=r"needs diffusers: pip install 'repa-eval\[latents\]'"):
        build_unet({})
    MMDiTText(MMDiTTextConfig(**{"depth": 1, "hidden_size": 32, "num_heads": 1}))  # ours needs nothing


# --- tokens


def sizes(**more: Any) -> MMDiTTextConfig:
    small = {"input_size": 16, "in_channels": 1, "depth": 3, "hidden_size": 32, "num_heads": 2}
    return MMDiTTextConfig(**{**small, "captions": ("a b", "a c"), "num_classes": 2, **more})


def test_soft_tokens_stand_before_the_text_of_mmdit() -> None:
    torch.manual_seed(0)
    model = MMDiTText(sizes(num_tokens=2, token_layers=2))
    wake(model)
    x, t, y = torch.randn(2, 1, 8, 16), torch.tensor([0.29, 1.0]), torch.tensor([1, 2])
    velocity, hidden = model(x, t, y, taps=(1, 3), contexts=(1, 2, 3))
    # by hand: fresh tokens before every one of the first blocks, those of the block before thrown away
    net, offsets = model.base_model, model.dc_t_tokens.weight.unflatten(1, (2, 32))[[29, 99]]
    tokens, context, c = net.x_embedder(x) + net.positions(4, 8), net.context_embedder(model.context[y]), None
    c = net.t_embedder(t)
    for layer, block in enumerate(net.joint_blocks):
        if layer < 2:
            soft = model.dc_tokens[layer][None] + offsets[:, layer, None]
            context = torch.cat([soft, context[:, -8:]], dim=1)
        else:
            context = context[:, -8:]
        torch.testing.assert_close(hidden["context", layer + 1], context)
        tokens, context = block(tokens, context, c)
        if layer + 1 in (1, 3):
            torch.testing.assert_close(hidden[layer + 1], tokens)
    velocity.square().sum().backward()
    assert all(p.grad is None for p in model.base_model.parameters())
    assert bool(model.dc_tokens.grad.flatten(1).any(1).all())


def test_bins_of_the_time_and_the_start_of_tokens() -> None:
    torch.manual_seed(0)
    model = MMDiTText(sizes(num_tokens=4, hidden_size=64))
    for tensor in (model.dc_tokens, model.dc_t_tokens.weight):
        assert float(tensor.detach().std()) == pytest.approx(0.02, rel=0.1)
    with torch.no_grad():  # every integer step falls into its own bin, whatever 1000 t is rounded to
        model.dc_tokens.zero_()
        model.dc_t_tokens.weight.copy_(torch.arange(100.0)[:, None].expand(100, 192))
    bins = model.soft_tokens(torch.arange(1001) / 1000)[:, 0, 0, 0]
    assert bins.tolist() == [min(step, 999) // 10 for step in range(1001)]


def test_strength_goes_from_the_frozen_network_to_the_tokens() -> None:
    torch.manual_seed(0)
    model = MMDiTText(sizes(num_tokens=2))
    wake(model)
    plain = MMDiTText(sizes())
    plain.base_model.load_state_dict(model.base_model.state_dict())
    x, t, y = torch.randn(2, 1, 8, 16), torch.tensor([0.3, 0.7]), torch.tensor([0, 1])
    with torch.no_grad():
        ends = plain(x, t, y)[0], model(x, t, y)[0]
        assert not torch.allclose(*ends)
        with model.at_strength(0):
            assert torch.equal(model(x, t, y)[0], ends[0])
        with model.at_strength(0.5):
            torch.testing.assert_close(model(x, t, y)[0], (ends[0] + ends[1]) / 2)
        assert torch.equal(model(x, t, y)[0], ends[1])
    assert (model.image_shape, plain.image_shape) == ((1, 16, 16), (1, 16, 16))
    assert MMDiTText(sizes(input_shape=(8, 16))).image_shape == (1, 8, 16)


def test_tokens_of_a_unet_do_not_start_alike() -> None:
    unet = build_unet(
        {
            "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": [32, 64],
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "layers_per_block": 1,
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "cross_attention_dim": 24,
            "attention_head_dim": 4, "norm_num_groups": 8,
        }
    )  # fmt: skip
    model = SoftTokens(unet, num_tokens=3, start=torch.ones(24), stages=("down", "up"))
    assert float(model.dc_tokens.detach().mean()) == pytest.approx(1, abs=0.05)
    rows = model.dc_tokens
    assert not any(torch.equal(rows[i], rows[j]) for i, j in ((0, 1), (1, 2), (0, 2)))
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 24)
    _, hidden = model(x, torch.tensor([3, 4]), text, contexts=(1, 2, 3))  # down, mid, up
    assert [hidden["context", place].shape[1] for place in (1, 2, 3)] == [8, 5, 8]
    assert torch.equal(hidden["context", 1][:, 0], text[:, 0])  # after the start token
    assert torch.equal(hidden["context", 1][:, 4:], text[:, 1:])
    model(x, torch.tensor([3, 4]), text)[0].square().sum().backward()
    gradient = model.dc_tokens.grad
    assert not torch.allclose(gradient[0], gradient[1], rtol=1e-3)
    with pytest.raises(UserError, match="choose among down, mid, up"):
        SoftTokens(unet, stages=("middle",))
    with pytest.raises(UserError, match="not into Linear"):
        SoftTokens(torch.nn.Linear(2, 2))


# --- the loss


def test_the_loss_has_its_bounds() -> None:
    own = torch.arange(8)
    perfect = torch.full((8, 8), 1e6).fill_diagonal_(0.0)
    losses = contrastive_losses(perfect, own, temp=0.07, scale=4.0)
    assert float(losses.mean()) == pytest.approx(math.log(1 + 7 * math.exp(-4)))
    assert float(contrastive_losses(torch.ones(8, 8), own, temp=0.07, scale=4.0).mean()) == pytest.approx(math.log(8))


def test_equal_captions_are_no_negatives() -> None:
    errors = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    y, whole = torch.tensor([5, 6, 5]), torch.tensor([5, 6, 5, 7])
    same = y[:, None] == whole[None]
    losses = contrastive_losses(errors, torch.arange(3), temp=0.5, scale=4.0, same=same)
    plain = contrastive_losses(errors, torch.arange(3), temp=0.5, scale=4.0)
    alone = contrastive_losses(errors[:1, [0, 1, 3]], torch.tensor([0]), temp=0.5, scale=4.0)
    assert losses[0] == pytest.approx(float(alone[0]))
    assert losses[1] == pytest.approx(float(plain[1]))
    assert losses[2] < plain[2]


def test_errors_are_of_image_and_caption() -> None:
    images = torch.arange(2.0).view(2, 1, 1, 1)
    errors = pair_errors(lambda x, y: x + 10.0 * y.view(-1, 1, 1, 1), images, torch.zeros_like(images), 3)
    assert errors.tolist() == [[0.0, 100.0, 400.0], [1.0, 121.0, 441.0]]


def prepared(**more: Any) -> tuple[Any, Any, Any]:
    """(recipe, objective with the base taken over, images)"""
    recipe, objective, images, _ = steps_of(tiny("softrepa", **more))
    [stage] = stages.resolve_stages(recipe, images, [])
    stages.begin(stage, Path(), objective.model, images, [])
    return recipe, objective, images


def terms_of(objective: Any, parts: list[Batch]) -> dict[str, float]:
    found = [objective(part, 0) for part in parts]
    return {key: sum(float(one[key]) for one in found) / len(found) for key in found[0]}


def test_one_noise_and_one_time_for_the_whole_batch() -> None:
    recipe, objective, images = prepared()
    [whole] = batches_of(recipe, images, [])
    seen: list[tuple[Tensor, Tensor]] = []
    objective.model.register_forward_pre_hook(lambda _, given: seen.append((given[0], given[1])))
    objective(whole, 0)
    [(noisy, times)] = seen
    assert noisy.shape[0] == 64
    assert len(times.unique()) == 1
    t = float(times[0])
    assert float(t * 1000) == pytest.approx(round(t * 1000), abs=1e-3)  # an integer step
    noise = (noisy.unflatten(0, (8, 8))[:, 0] - (1 - t) * whole.x) / t
    torch.testing.assert_close(noise, whole.draws["noise"][:1].expand_as(noise), atol=1e-4, rtol=1e-4)


def test_parts_of_a_batch_have_all_its_captions() -> None:
    recipe, objective, images = prepared()
    halves = dataclasses.replace(recipe, settings=dataclasses.replace(recipe.settings, gradient_accumulation=2))
    parts = batches_of(halves, images, [])
    assert [part.first for part in parts] == [0, 4]
    assert [len(part.whole) for part in parts] == [8, 8]
    whole = terms_of(objective, batches_of(recipe, images, []))
    assert terms_of(objective, parts) == pytest.approx(whole, rel=1e-5)


def test_only_the_tokens_learn_and_the_base_stays_to_the_bit(tmp_path: Path) -> None:
    last = run(tiny("softrepa", ema_decay=0.9), tmp_path / "run")
    base = digest_module(checkpoints.load(tiny_base()).network.base_model)
    for weights in ("ema", "online"):
        first, opened = (
            checkpoints.load(last.parent / name, weights=weights).network for name in ("0000003.pt", last.name)
        )
        assert digest_module(opened.base_model) == digest_module(first.base_model) == base
        assert not torch.equal(first.dc_tokens, opened.dc_tokens)
        assert not torch.equal(first.dc_t_tokens.weight, opened.dc_t_tokens.weight)
        rows = opened.dc_tokens.flatten(0, 1)
        assert not any(torch.equal(rows[0], row) for row in rows[1:])


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.9999])
def test_averages_round_no_frozen_weight(decay: float) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(50, 50), torch.nn.Linear(50, 50))
    model[0].requires_grad_(False)
    ema = state.average_of(model)
    torch.nn.init.normal_(model[1].weight)
    before = model[1].weight * (1 - decay) + ema[1].weight * decay
    for _ in range(3):
        state.update_average(ema, model, decay)
        if decay and _ == 0:
            torch.testing.assert_close(ema[1].weight, before)
    assert torch.equal(ema[0].weight, model[0].weight)


def test_objectives() -> None:
    recipe, objective, images = prepared()
    wake(objective.model.dc_t_tokens)
    [batch] = batches_of(recipe, images, [])
    batch.modules = objective.extras

    def losses(**options: Any) -> dict[str, Tensor]:
        return dataclasses.replace(recipe.method, **options).losses(objective.model, batch, 0)

    errors = recipe.method.errors(objective.model, batch)
    both = losses(dweight=2.0)
    torch.testing.assert_close(both["denoising_loss"], 2.0 * errors.diagonal())
    assert set(losses(dweight=0.0)) == {"contrastive_loss"}
    torch.testing.assert_close(losses(objective="denoise")["denoising_loss"], errors.diagonal(), rtol=1e-4, atol=1e-5)
    nothing = losses(objective="none")["no_loss"]
    nothing.backward()
    assert float(nothing) == 0
    assert not objective.model.dc_tokens.grad.any()
    assert torch.isfinite(losses(temp=0.07, scale=8.0)["contrastive_loss"]).all()
    swapped = dataclasses.replace(batch, whole=batch.whole.flip(0))
    assert not torch.allclose(recipe.method.errors(objective.model, swapped), errors)


def test_the_published_defaults() -> None:
    method = SoftREPA()
    assert (method.temp, method.scale, method.dweight, method.tokens, method.layers) == (0.07, 4.0, 0.0, 4, 5)
    assert method.use_dc_t
    assert method.objective == "contrastive"
    coco = resolve(read_recipe("coco/softrepa-sd3"))
    assert (coco.method.temp, coco.method.layers, coco.settings.batch_size) == (0.07, 5, 4)
    assert coco.architecture.of_diffusers()["caption_projection_dim"] == 1536
    assert "coco/softrepa-sd3" in builtin_recipes()
    assert "no data kind reads text features yet" in coco.settings.description


def test_two_processes_have_the_negatives_of_one(tmp_path: Path) -> None:
    recipe = tiny("softrepa", max_steps=2, checkpoint_every=2)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.to_dict()))
    torchrun = ["--standalone", "--nproc_per_node", "2", "--redirects", "3", "--log-dir", "logs"]
    words = ["--recipe", "recipe.yaml", "--device", "cpu", "--quiet", "--out", "two"]
    process = launch("torch.distributed.run", *torchrun, "-m", "repa_eval.train.cli", *words, cwd=tmp_path)
    code, _, err = finish(process)
    assert code == 0, [err, *(path.read_text() for path in (tmp_path / "logs").rglob("stderr.log"))]
    one, two = (
        checkpoints.load(path).network
        for path in (run(recipe, tmp_path / "one"), tmp_path / "two/checkpoints/0000002.pt")
    )
    torch.testing.assert_close(two.dc_tokens, one.dc_tokens, rtol=1e-4, atol=1e-5)
    assert digest_module(one.base_model) == digest_module(two.base_model)


def test_mmdit_is_trained_and_gets_tokens(tmp_path: Path) -> None:
    small = {"model": "MMDiT-digits", "depth": 2, "hidden_size": 32, "num_heads": 2, "max_steps": 3}
    base = run(tiny("t2i", **small), tmp_path / "base")
    done = run(tiny("softrepa", model="MMDiT-digits", base=str(base), max_steps=3), tmp_path / "soft")
    opened = checkpoints.load(done)
    assert opened.model_name == "MMDiT-digits"
    assert isinstance(opened.network.base_model, MMDiT)
    assert digest_module(opened.network.base_model) == digest_module(checkpoints.load(base).network.base_model)
    assert MMDiTConfig(depth=1, input_size=16)
    assert set(architectures_for(METHODS.get("softrepa").requires)) == {"SD3", "MMDiT-text"}
