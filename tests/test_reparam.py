"""`repa-eval reparam`, the conversion of a teacher and its distillation: from a ViT to a merged one that teaches."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from click.testing import CliRunner, Result
from test_repavit import encoder, images_of, official_file
from torch import Tensor, nn

from helpers import batches_of, digits, run, steps_of, tiny
from repa_eval import checkpoints
from repa_eval.cli import main
from repa_eval.errors import Failure, UserError
from repa_eval.interfaces.teacher import load_teacher
from repa_eval.models.encoders.repa_conv_vit import RePaConvViT, RePaConvViTConfig
from repa_eval.models.encoders.repa_vit import RePaViT, RePaViTConfig
from repa_eval.models.shared.encoder import Encoder
from repa_eval.models.shared.idle_feed_forward import LAYER_NORM, FeedForward, PixelConfig
from repa_eval.reparameterisation import merged as merging
from repa_eval.results import read
from repa_eval.teachers.shared.preprocessing import OfficialPixels, SignedImage, WholeImage, pixels_of, recorded
from repa_eval.teachers.shared.timm_teacher import VisionTeacher
from repa_eval.train import stages, state
from repa_eval.train.conversion import config_of, convert, fit
from repa_eval.train.recipe import read_recipe, resolve

BRIEF = ("--rounds", 2, "--speed-batch", 2, "--num-images", 40)


def repa_eval(*words: object) -> Result:
    return CliRunner().invoke(main, list(map(str, words)))


def fails(done: Result, code: int, text: str) -> None:
    assert (done.exit_code, done.stdout) == (code, ""), done.output
    assert text in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the embedded teacher, converted and trained for six steps."""
    return run(tiny("repavit"), tmp_path_factory.mktemp("runs") / "small")


# The conversion


def vision_teacher(**arguments: Any) -> VisionTeacher:
    """A small ViT of timm whose weights, norms and LayerScales are not as they were made."""
    torch.manual_seed(0)
    given = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
    network = timm.models.vision_transformer.VisionTransformer(**{**given, **arguments})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    pixels = WholeImage(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25), size=(32, 32))
    return VisionTeacher("small", network.eval(), pixels).freeze()  # type: ignore[return-value]


def pictures(count: int, side: int = 40) -> Tensor:
    """Smooth random images, uint8, unlike one another."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 5, 5, generator=generator) * 255
    return F.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 255).to(torch.uint8)


SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "LayerScale, registers, positions of patches only": {"init_values": 0.5, "reg_tokens": 2, "no_embed_class": True},
    "a norm before the blocks": {"pre_norm": True},
    "no norm after the blocks": {"final_norm": False},
    "norms of queries and keys": {"qk_norm": True, "qkv_bias": False},
    "no class token": {"class_token": False, "global_pool": "avg", "fc_norm": False},
}


@pytest.mark.parametrize("what", SHAPES)
def test_everything_around_the_feed_forwards_is_kept(what: str) -> None:
    teacher = vision_teacher(**SHAPES[what])
    images = pictures(6)
    model = RePaViT(config_of(teacher, images[:1], RePaViTConfig())).eval()
    convert(model, teacher, images)
    # with the teacher's own feed-forwards in place of the converted ones, nothing is left to differ
    for mine, theirs in zip(model.blocks, teacher.network.blocks, strict=True):
        mine.mlp = Plain(theirs)
    with torch.no_grad():
        tokens, expected = model(pixels_of(model.config)(images))[0], teacher(images)
    torch.testing.assert_close(tokens[:, model.prefix_tokens :], expected.patches, rtol=1e-4, atol=1e-5)
    if expected.cls is not None:
        torch.testing.assert_close(tokens[:, 0], expected.cls, rtol=1e-4, atol=1e-5)


class Plain(nn.Module):
    """A block's second half as timm computes it."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        return x + self.block.ls2(self.block.mlp(self.block.norm2(x)))  # type: ignore[no-any-return]


def test_a_feed_forward_without_idle_channels_loses_the_layer_norm_only() -> None:
    torch.manual_seed(0)
    mlp, norm = (nn.Linear(16, 64), nn.Linear(64, 16)), nn.LayerNorm(16)
    x = torch.randn(500, 16)
    x = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True, unbiased=False)  # where both norms say nearly the same
    part = FeedForward(16, 64, 64).eval()
    fit(part, x, norm, *(t.detach().double() for linear in mlp for t in (linear.weight, linear.bias)))
    with torch.no_grad():
        wanted = mlp[1](F.gelu(mlp[0](norm(x))))
        assert float((part(x) - x - wanted).norm() / wanted.norm()) < 0.1
        h = part.activated(part.fc1(part.norm1(x)))
        torch.testing.assert_close(part.norm2(h), h, rtol=1e-4, atol=1e-5)  # the second norm is the identity


def test_small_activations_lose_little_by_idle_channels() -> None:
    torch.manual_seed(0)
    mlp, norm = (nn.Linear(16, 64), nn.Linear(64, 16)), nn.LayerNorm(16)
    with torch.no_grad():
        mlp[0].weight.mul_(0.1)  # variances of some 1e-3, where GELU is nearly a line
        mlp[0].bias.zero_()
    x = torch.randn(500, 16)
    x = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True, unbiased=False)
    part = FeedForward(16, 64, 4).eval()
    fit(part, x, norm, *(t.detach().double() for linear in mlp for t in (linear.weight, linear.bias)))
    with torch.no_grad():
        h = mlp[0](norm(x))
        assert float(h.var(0).max()) < 0.01
        wanted = mlp[1](F.gelu(h))
        spread = (wanted - wanted.mean(0)).norm()
        assert float((part(x) - x - wanted).norm() / spread) < 0.1


def test_the_units_that_lose_most_stay_active() -> None:
    torch.manual_seed(0)
    w1, b1 = torch.randn(64, 16).double(), torch.zeros(64).double()
    w2, b2 = torch.randn(16, 64).double() * 0.01, torch.zeros(16).double()
    bent, strong = [5, 17, 40], [2, 9, 33]
    b1[:] = 8.0  # GELU is a line there,
    b1[[*bent, *strong]] = 0.0  # but not here,
    w2[:, strong] *= 100.0  # and here it matters most
    part = FeedForward(16, 64, 6).eval()
    fit(part, torch.randn(2000, 16), nn.LayerNorm(16), w1, b1, w2, b2)
    kept = [int((part.fc1.weight[i].double() - w1).abs().sum(1).argmin()) for i in range(6)]
    assert sorted(kept[:3]) == strong
    assert sorted(kept) == sorted(bent + strong)


def test_a_line_keeps_the_mean_of_what_it_replaces() -> None:
    torch.manual_seed(0)
    mlp, x, part = (nn.Linear(16, 64), nn.Linear(64, 16)), torch.randn(500, 16) + 1.0, FeedForward(16, 64, 0).eval()
    norm = nn.LayerNorm(16)
    fit(part, x, norm, *(t.detach().double() for linear in mlp for t in (linear.weight, linear.bias)))
    with torch.no_grad():
        wanted = mlp[1](F.gelu(mlp[0](part.norm1(x))))
        torch.testing.assert_close((part(x) - x).mean(0), wanted.mean(0), rtol=1e-4, atol=1e-5)
        assert float((part.norm1(x) - norm(x)).mean(0).abs().max()) < 1e-5  # nor does the norm's line change its mean


def test_the_feed_forwards_layer_scale_goes_into_its_last_matrix() -> None:
    teacher = vision_teacher(init_values=0.5, depth=1)
    model = RePaViT(config_of(teacher, pictures(1), RePaViTConfig(idle_ratio=0.0))).eval()
    convert(model, teacher, pictures(4))
    [mine], [theirs] = model.blocks, teacher.network.blocks
    scaled = theirs.ls2.gamma[:, None] * theirs.mlp.fc2.weight
    lengths = (torch.linalg.norm(weight, dim=0).sort().values for weight in (mine.mlp.fc2.weight, scaled))
    torch.testing.assert_close(*lengths)
    torch.testing.assert_close(mine.mlp.fc2.bias, theirs.ls2.gamma * theirs.mlp.fc2.bias)


@pytest.mark.parametrize(("ratio", "least"), [(0.0, 0.98), (0.75, 0.96), (1.0, 0.9)])
def test_the_embedded_teacher_converts_without_training(ratio: float, least: float) -> None:
    teacher, images = load_teacher("digits-vit"), torch.from_numpy(digits("val").images)
    model = RePaConvViT(config_of(teacher, images[:1], RePaConvViTConfig(idle_ratio=ratio))).eval()
    convert(model, teacher, images)
    unseen = torch.from_numpy(digits("test").images[:100])
    with torch.no_grad():
        patches = model.features(pixels_of(model.config)(unseen))[:, 1:]
        likeness = F.cosine_similarity(patches, teacher(unseen).patches, dim=-1).mean()
    assert float(likeness) > least


@pytest.mark.parametrize(
    ("teacher", "why"),
    [
        (lambda: vision_teacher(act_layer="quick_gelu"), "its activation is QuickGELU, not GELU"),
        (lambda: vision_teacher(mlp_layer=timm.layers.SwiGLU), "its feed-forwards are SwiGLU"),
        (lambda: vision_teacher(block_fn=timm.models.vision_transformer.ResPostBlock), "its blocks are ResPostBlock"),
        (lambda: vision_teacher(norm_layer="rmsnorm"), "its norms are RmsNorm"),
        (lambda: vision_teacher(pos_embed="none"), "it has no table of positions"),
        (lambda: resnet(), "it is a ResNet"),
        (lambda: wide_attention(), "its attention is not the plain one"),
    ],
)
def test_what_cannot_be_converted_is_refused(teacher: Any, why: str) -> None:
    with pytest.raises(UserError, match=f"cannot be converted: {why}; what can are digits-vit and timm's plain"):
        config_of(teacher(), pictures(1), RePaViTConfig())


def wide_attention() -> VisionTeacher:
    """One block's attention works in another width than the model's; no ViT of timm's asks for it by an argument."""
    teacher = vision_teacher()
    attn: Any = teacher.network.blocks[1].attn
    attn.qkv = nn.Linear(attn.qkv.in_features, 2 * attn.qkv.out_features)
    attn.proj = nn.Linear(2 * attn.proj.in_features, attn.proj.out_features)
    return teacher


def resnet() -> VisionTeacher:
    network = timm.create_model("resnet10t", num_classes=0)
    return VisionTeacher("small", network, WholeImage(mean=(0.5,) * 3, std=(0.5,) * 3, size=(32, 32)))


def test_the_model_that_a_teacher_is_converted_to_is_named() -> None:
    with pytest.raises(UserError, match="teacher small is converted to model=RePaViT"):
        config_of(vision_teacher(), pictures(1), RePaConvViTConfig())
    digit = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(UserError, match="teacher digits-vit is converted to model=RePaConvViT-digits"):
        config_of(load_teacher("digits-vit"), digit, RePaViTConfig())


@pytest.mark.parametrize(
    "pixels",
    [
        WholeImage(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), size=(24, 24), mode="bilinear"),
        OfficialPixels(side=224, resolutions=(256, 512)),
        OfficialPixels(),
        OfficialPixels(mean=(0.1, 0.2, 0.3), side=224, resize_first=True),
        SignedImage(shape=(3, 256, 256)),
    ],
)
def test_preprocessing_is_recorded(pixels: Any) -> None:
    images = torch.randint(256, (2, 3, 256, 256), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    side = pixels(images).shape[-1]
    record = recorded(pixels, resolution=256)
    assert isinstance(record, PixelConfig)
    config = dataclasses.replace(RePaViTConfig(), pixels=record, input_size=side)
    assert torch.equal(pixels_of(config)(images), pixels(images))


# The training


def test_the_average_takes_the_statistics_along() -> None:
    model = nn.BatchNorm1d(3)
    average = state.average_of(model)
    model.running_mean += 1.0  # type: ignore[operator]
    state.update_average(average, model, 0.9)
    assert torch.equal(average.running_mean, model.running_mean)  # type: ignore[arg-type]
    ours = RePaConvViT(RePaConvViTConfig(hidden_size=8, depth=1, stem_size=2, num_heads=1))
    average = state.average_of(ours)
    with torch.no_grad():
        for tensor in ours.state_dict().values():
            if tensor.is_floating_point():
                tensor += 1.0
    before = {name: tensor.clone() for name, tensor in average.state_dict().items()}
    state.update_average(average, ours, 0.9)
    frozen = {name for name, parameter in ours.named_parameters() if not parameter.requires_grad}
    assert "stem.0.weight" in frozen
    for name, tensor in average.state_dict().items():
        moved = 1.0 if name.startswith("feature_") else 0.1  # what is not a statistic of a norm is copied
        moved = 0.0 if name in frozen else moved  # and what never trains is left alone
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor - before[name], torch.full_like(tensor, moved), msg=name)


def test_the_stem_stays_the_teachers(trained: Path) -> None:
    before, after = load_teacher("digits-vit").network, checkpoints.load(trained, weights="online").network
    for name, tensor in before.state_dict().items():
        if name.startswith(("stem.", "feature_")):
            assert torch.equal(after.state_dict()[name], tensor), name


def test_dropped_branches_follow_the_draws() -> None:
    recipe, objective, images, teachers = steps_of(tiny("repavit", drop_path=0.5))
    [batch] = batches_of(recipe, images, teachers)
    draw = batch.draws["drop_path"]
    assert draw.shape == (8, 2, 2)
    seen = []
    objective.model.register_forward_pre_hook(lambda _m, _given, more: seen.append(more["keep"]), with_kwargs=True)
    objective(batch, 0)
    assert torch.equal(seen[0], (draw >= 0.5).float() * 2)


def test_the_loss_is_the_distance_to_the_teacher() -> None:
    recipe, objective, images, teachers = steps_of(tiny("repavit", idle_ratio=0.5))
    stages.begin(stages.resolve_stages(recipe, images, teachers)[0], Path("unused"), objective.model, images, teachers)
    [batch] = batches_of(recipe, images, teachers)
    terms = recipe.method.losses(objective.model.eval(), batch, 0)
    told = teachers[0](batch.images)
    target = torch.cat([told.cls[:, None], told.patches], 1)  # type: ignore[index]
    tokens = objective.model.features(batch.x)
    torch.testing.assert_close(terms["cosine_loss"], 1 - F.cosine_similarity(tokens, target, dim=-1).mean())
    error = (tokens - target).square().flatten(1).mean(1) / target.flatten(1).var(1)
    torch.testing.assert_close(terms["mse_loss"], error)
    assert float(terms["cosine_loss"].detach()) < 0.1  # converted, not random


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"enc_type": "digits-vit,digits-vit"}, "one teacher is converted"),
        ({"enc_type": ""}, "one teacher is converted"),
        ({"idle_ratio": 1.5}, "it is a share, 0 to 1"),
        ({"drop_path": 1.0}, "at least 0 and below 1"),
        ({"model": "RePaViT"}, "converted to model=RePaConvViT-digits"),
    ],
)
def test_wrong_options_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        steps_of(resolve(read_recipe("digits-repavit"), {"split": "val", **changes}))


# The command


def test_merging_our_own_checkpoint(trained: Path, tmp_path: Path) -> None:
    out, table = tmp_path / "merged.pt", tmp_path / "results.jsonl"
    done = repa_eval("reparam", trained, "--out", out, "--rows", table, "--json", *BRIEF)
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    values = {(row["metric"], row["layer"]): row["value"] for row in told["rows"]}
    assert values["merge_difference_random", None] < 1e-5
    assert values["merge_difference_real", None] < 1e-5
    assert values["num_parameters_merged", None] < values["num_parameters_training", None]
    for form, metric in itertools.product(merging.FORMS, ("ms_per_image", "num_parameters")):
        assert values[f"{metric}_{form}", None] > 0
    fast = values["ms_per_image_merged", None]
    assert values["speedup", None] == pytest.approx(values["ms_per_image_original", None] / fast)
    assert values["speedup_training", None] == pytest.approx(values["ms_per_image_training", None] / fast)
    for metric in ("cknna_merged", "cka_merged"):
        assert all(0.5 < values[metric, layer] <= 1 for layer in (1, 2))
    for metric, form in itertools.product(("probe_accuracy", "knn_accuracy"), ("original", "merged")):
        assert values[f"{metric}_{form}", None] > 0.8
    assert all(row["protocol"] in told["protocols"] and row["step"] == 6 for row in told["rows"])
    kinds = {told["protocols"][row["protocol"]]["kind"] for row in told["rows"]}
    assert kinds == {"merge", "probe"}
    timed = next(record for record in told["protocols"].values() if "threads" in record)
    assert (timed["threads"], timed["batch_size"], timed["original"]) == (torch.get_num_threads(), 2, "digits-vit")
    assert {row.metric for row in read(table)} == {metric for metric, _ in values}

    opened, before = checkpoints.load(out), checkpoints.load(trained)
    assert (opened.info()["form"], opened.info()["teacher"], opened.step) == ("merged", "digits-vit", 6)
    x = images_of(before.network)
    torch.testing.assert_close(opened.network(x)[0], before.network(x)[0], rtol=1e-4, atol=1e-4)
    fails(repa_eval("reparam", out, "--out", tmp_path / "again.pt"), 2, "its feed-forwards are merged already")


def test_what_a_person_reads(trained: Path, tmp_path: Path) -> None:
    done = repa_eval("reparam", trained, "--out", tmp_path / "merged.pt", *BRIEF, "--threads", 1)
    assert done.exit_code == 0, done.stderr
    for text in ("relative difference", "ms per image", "original: digits-vit", "1 thread", "block 2", "linear probe"):
        assert text in done.stdout
    assert done.stdout.endswith("merged.pt\n")


def test_the_merged_file_teaches(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged.pt"
    assert repa_eval("reparam", trained, "--out", out, "--no-probes", *BRIEF).exit_code == 0
    pixels = torch.from_numpy(digits("test").images[:20])
    merged, whole, original = (load_teacher(name) for name in (str(out), str(trained), "digits-vit"))
    torch.testing.assert_close(merged(pixels).patches, whole(pixels).patches, rtol=1e-3, atol=1e-4)
    assert float(F.cosine_similarity(merged(pixels).patches, original(pixels).patches, dim=-1).mean()) > 0.9
    with pytest.raises(UserError, match="reads 1x8x8 images, not 3x8x8"):
        merged(pixels.expand(-1, 3, -1, -1))
    student = run(tiny("repa", enc_type=str(out), max_steps=3), tmp_path / "student")
    words = ["--ckpt", student, "--layer", 1, "--timesteps", "0.1", "--num-images", 40, "--quiet", "--json"]
    for teacher in ([], ["--teacher", out], ["--teacher", "repavit", "--teacher-weights", out]):
        done = repa_eval("align", *words, *teacher)
        assert done.exit_code == 0, done.stderr
        record = next(iter(json.loads(done.stdout)["protocols"].values()))
        assert record["teacher"] == ("repavit" if "repavit" in teacher else "merged.pt")  # not where it lies
        assert record["teacher_hash"] == merged.digest


def test_a_converted_file_of_safetensors_opens_too(trained: Path, tmp_path: Path) -> None:
    out, folder = tmp_path / "merged.pt", tmp_path / "out"
    assert repa_eval("reparam", trained, "--out", out, "--no-probes", *BRIEF).exit_code == 0
    assert repa_eval("convert", out, "--to", folder).exit_code == 0
    again = checkpoints.load(folder)
    x = images_of(again.network)
    assert torch.equal(again.network(x)[0], checkpoints.load(out).network(x)[0])
    pixels = torch.from_numpy(digits("test").images[:4])
    assert torch.equal(
        load_teacher(str(folder / "model.safetensors"))(pixels).patches, load_teacher(str(out))(pixels).patches
    )


def test_merging_a_published_file(tmp_path: Path) -> None:
    path = official_file(
        tmp_path / "checkpoint.pth", dict(encoder("RePaViT").state_dict()), idle_ratio=0.75, num_heads=2
    )
    done = repa_eval("reparam", path, "--out", tmp_path / "merged.pt", "--json", *BRIEF)
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert "speedup" in {row["metric"] for row in told["rows"]}
    assert any(record.get("data") == "scikit-learn's photographs" for record in told["protocols"].values())
    assert any("timm's VisionTransformer" in str(record.get("original")) for record in told["protocols"].values())
    state = torch.load(tmp_path / "merged.pt", weights_only=True)["model"]
    assert {name for name in state if ".mlp." in name} == {
        f"blocks.{i}.mlp.{part}"
        for i in range(3)
        for part in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias", "fc3.weight")
    }


def test_an_original_that_is_not_at_hand_is_left_out(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str, weights: Any) -> Any:
        raise Failure(f"teacher {name}: no network")

    monkeypatch.setattr("repa_eval.interfaces.teacher.load_teacher", absent)
    done = repa_eval("reparam", trained, "--out", tmp_path / "merged.pt", *BRIEF)
    assert done.exit_code == 0, done.stderr
    assert "note: not compared with the original: teacher digits-vit: no network" in done.stdout
    assert "original  " not in done.stdout


def test_an_idle_ratio_that_the_file_does_not_record_is_said(tmp_path: Path) -> None:
    sizes = {"input_size": 32, "hidden_size": 192, "depth": 12, "num_heads": 3, "patch_size": 16, "num_classes": 0}
    torch.save(dict(encoder("RePaViT", **sizes).state_dict()), tmp_path / "bare.pth")  # as RePaViT_Tiny
    for words, said in (((), True), (("--set", "idle_ratio=0.5"), False)):
        done = repa_eval("reparam", tmp_path / "bare.pth", "--out", tmp_path / "merged.pt", *words, *BRIEF)
        assert done.exit_code == 0, done.stderr
        assert ("idle ratio 0.5 is that of the published size" in done.stdout) == said


def test_the_counterpart_is_as_large(tmp_path: Path) -> None:
    network = encoder("RePaViT", num_classes=0)
    found = merging.counterpart(merging.Pair(network, network.merged()))
    assert found is not None
    assert found[1](images_of(network)).shape == network(images_of(network))[0].shape  # type: ignore[attr-defined]
    swin = encoder("RePaSwin")
    assert merging.counterpart(merging.Pair(swin, swin.merged())) is None


def test_forms_take_turns() -> None:
    calls: list[str] = []
    ticks = itertools.count()
    arms = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    times = merging.interleaved(arms, rounds=2, clock=lambda: float(next(ticks)))
    assert calls == list("abcabcabc")
    assert times == {name: [1.0, 1.0] for name in "abc"}


def test_a_merge_that_changes_something_writes_nothing(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Encoder.merged

    def wrong(self: Encoder) -> Encoder:
        twin = right(self)
        with torch.no_grad():
            twin.get_submodule("blocks.0.mlp.fc1").bias += 0.01  # type: ignore[operator]
        return twin

    monkeypatch.setattr(Encoder, "merged", wrong)
    done = repa_eval("reparam", trained, "--out", tmp_path / "merged.pt", *BRIEF)
    fails(done, 1, "the merged form differs by")
    assert list(tmp_path.iterdir()) == []


def test_what_is_refused(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged.pt"
    fails(repa_eval("reparam", trained, "--out", tmp_path / "merged.onnx"), 2, "choose a file that ends in .pt or .pth")
    fails(repa_eval("reparam", trained, "--out", trained), 2, "is the checkpoint itself, which would be overwritten")
    fails(repa_eval("reparam", tmp_path / "none.pt", "--out", out), 2, "does not exist")
    network = encoder("RePaViT", feature_norm=LAYER_NORM)
    said = {"idle_ratio": 0.75, "num_heads": 2, "channel_idle": True}
    layer_norm = official_file(tmp_path / "layer_norm.pth", dict(network.state_dict()), **said)
    fails(repa_eval("reparam", layer_norm, "--out", out), 2, "idle channels with LayerNorm cannot be merged")
    diffusion = run(tiny("vanilla", max_steps=1), tmp_path / "vanilla")
    fails(repa_eval("reparam", diffusion, "--out", out), 2, "only RePaViT's encoders are merged")
    grey = encoder("RePaViT", in_channels=1)
    path = official_file(tmp_path / "grey.pth", dict(grey.state_dict()), idle_ratio=0.75, num_heads=2)
    fails(repa_eval("reparam", path, "--out", out), 2, "name real images with --data")
    assert not out.exists()


@pytest.mark.parametrize("command", ["align", "probe", "sample"])
def test_an_encoder_is_no_diffusion_model(trained: Path, tmp_path: Path, command: str) -> None:
    words = ["--num", 4, "--out", tmp_path / "x"] if command == "sample" else []
    done = repa_eval(command, "--ckpt", trained, *words)
    fails(done, 2, "holds RePaConvViT-digits, which ")


def test_milliseconds_are_per_image(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {merging.ORIGINAL: 0.2, merging.TRAINING: 0.3, merging.MERGED: 0.1}

    def clocked(arms: dict[str, Any], **settings: Any) -> dict[str, list[float]]:
        return {name: [seconds[name] * factor for factor in (1.0, 0.8, 1.2, 1.0)] for name in arms}

    monkeypatch.setattr(merging, "interleaved", clocked)
    network = encoder("RePaViT").eval()
    rows = merging.speed(merging.Pair(network, network.merged()), batch_size=4, rounds=4, columns={})
    found = {row.metric: row.value for row in rows}
    assert {name: found[f"ms_per_image_{name}"] for name in seconds} == pytest.approx(
        {merging.ORIGINAL: 50.0, merging.TRAINING: 75.0, merging.MERGED: 25.0}
    )
    assert (found["speedup"], found["speedup_training"]) == pytest.approx((2.0, 3.0))
    low, _, high = statistics.quantiles((0.8, 1.0, 1.0, 1.2), n=4)  # of normal values: 1.349 deviations apart
    [stderr] = [row.stderr for row in rows if row.metric == "ms_per_image_merged"]
    assert stderr == pytest.approx(25.0 * math.sqrt(math.pi / 2) * (high - low) / 1.349 / 2, rel=1e-4)
