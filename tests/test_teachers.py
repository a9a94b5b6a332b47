"""Teachers: tokens, preprocessing and attention of every family against networks that are written out; timm:NAME."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from teacher_examples import CLOSE, EXAMPLES, OpenClip, image, published_pixels, reference, saved, shrink, teacher_of
from torch import Tensor, nn
from torchvision.transforms.functional import normalize

from helpers import digits
from repa_eval.errors import UserError
from repa_eval.interfaces.teacher import TEACHERS, load_teacher
from repa_eval.teachers import official
from repa_eval.teachers.shared.preprocessing import WholeImage
from repa_eval.teachers.shared.timm_teacher import VisionTeacher


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)


# --- tokens


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", EXAMPLES)
def test_tokens_are_those_of_the_published_network(name: str, tmp_path: Path) -> None:
    example, teacher, images = EXAMPLES[name], teacher_of(name, tmp_path), image(count=2)
    assert (teacher.name, teacher.width, len(teacher.digest)) == (name, example.width, 12)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    tokens = teacher(images)
    pixels = published_pixels(images, name.partition("-")[0])
    wanted, logits = reference(example.state(), pixels, heads=example.heads, last_norm=example.last_norm)
    prefix = wanted.shape[1] - 256
    # of norms one constant does not show in tokens: 1e-5 moves them by 2e-6
    assert {module.eps for module in teacher.modules() if isinstance(module, nn.LayerNorm)} == {1e-6}
    torch.testing.assert_close(tokens.patches, wanted[:, prefix:], **CLOSE)
    assert (tokens.cls is None) == (prefix == 0)
    if tokens.cls is not None:
        torch.testing.assert_close(tokens.cls, wanted[:, 0], **CLOSE)
    found = teacher.attention_logits(images, [2, 1])
    assert set(found) == {1, 2}
    for layer, given in found.items():
        torch.testing.assert_close(given, logits[layer - 1][:, :, prefix:, prefix:], **CLOSE)


@pytest.mark.usefixtures("small")
def test_clip_before_its_last_norm(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tower = OpenClip().half().float()  # published in half precision
    state = {f"visual.{name}": tensor.half() for name, tensor in tower.state_dict().items()}
    state |= {"logit_scale": torch.ones(()), "positional_embedding": torch.ones(77, 8), "ln_final.bias": torch.ones(8)}
    teacher = load_teacher("clip-vit-L", saved(state, tmp_path / "clip.pt"))
    images = image()
    with torch.no_grad():
        wanted = tower(published_pixels(images, "clip"))
    tokens = teacher(images)
    assert tokens.patches.dtype == torch.float32
    assert {module.eps for module in teacher.modules() if isinstance(module, nn.LayerNorm)} == {1e-5}
    torch.testing.assert_close(tokens.patches, wanted[:, 1:], **CLOSE)
    assert tokens.cls is not None
    torch.testing.assert_close(tokens.cls, wanted[:, 0], **CLOSE)


@pytest.mark.parametrize("family", official.FAMILIES)
def test_every_size_is_an_architecture_of_timm(family: str) -> None:
    line = official.FAMILIES[family]
    for letter in line.letters:
        assert f"{family}-vit-{letter}" in TEACHERS.names()
        assert timm.is_model(line.of(letter).architecture)
        assert line.file or "." in line.of(letter).network, "nobody could tell which file is wanted"


# --- preprocessing and sizes of images


@pytest.mark.parametrize(
    "family", ["dinov2", "dinov2reg", "dinov1", "mocov3", "mae", "clip", "jepa", "dinov3", "webssl"]
)
def test_preprocessing_is_the_trainers_bit_by_bit(family: str) -> None:
    pixels = official.FAMILIES[family].pixels
    assert pixels.resolutions == ((256, 512) if family.startswith(("dinov2", "dinov3")) else (256,))
    for side in pixels.resolutions:
        assert torch.equal(pixels(image(side)), published_pixels(image(side), family))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["dinov2-vit-b", "dinov2reg-vit-l"])
def test_512_px_doubles_the_grid_from_the_loaded_table(name: str, tmp_path: Path) -> None:
    teacher, state = teacher_of(name, tmp_path), EXAMPLES[name].state()
    digest, first = teacher.digest, teacher(image())
    large = image(512)
    wanted, _ = reference(state, published_pixels(large, "dinov2"))
    torch.testing.assert_close(teacher(large).patches, wanted[:, -1024:], **CLOSE)
    assert torch.equal(teacher(image()).patches, first.patches)
    assert teacher.digest == digest


@pytest.mark.usefixtures("small")
def test_other_sizes_are_refused_in_one_line(tmp_path: Path) -> None:
    for name in ("mocov3-vit-b", "mae-vit-l", "jepa-vit-h"):
        with pytest.raises(UserError, match=rf"{name} reads RGB images of 256x256, not 3x512x512; .*DINOv2"):
            teacher_of(name, tmp_path)(image(512))
    teacher = teacher_of("dinov2-vit-b", tmp_path)
    for given, said in ((image(8), "3x8x8"), (image(256, channels=1), "1x256x256"), (image()[..., :200], "3x256x200")):
        with pytest.raises(UserError, match=f"dinov2-vit-b reads RGB images of 256x256 or 512x512, not {said}"):
            teacher(given)


# --- timm:NAME


def timm_teacher(network: str, tmp_path: Path) -> tuple[Any, nn.Module]:
    torch.manual_seed(0)
    built = timm.create_model(network).eval()  # with its classifier, as published
    return load_teacher(f"timm:{network}", saved(built.state_dict(), tmp_path / "timm.pth")), built


@pytest.mark.parametrize("network", ["test_vit", "test_vit2", "test_vit3"])
def test_any_vit_of_timm(network: str, tmp_path: Path) -> None:
    teacher, built = timm_teacher(network, tmp_path)
    tokens = teacher(image(64))
    whole = F.interpolate(image(64) / 255.0, built.pretrained_cfg["input_size"][1:], mode="bicubic", antialias=True)
    pixels = normalize(whole, built.pretrained_cfg["mean"], built.pretrained_cfg["std"])
    wanted = built.forward_features(pixels)
    torch.testing.assert_close(tokens.patches, wanted[:, built.num_prefix_tokens :], **CLOSE)
    assert tokens.patches.shape == (1, 100, teacher.width)
    assert (tokens.cls is None) == (built.cls_token is None)
    logits = teacher.attention_logits(image(64), [len(built.blocks)])
    assert logits[len(built.blocks)].shape == (1, built.blocks[0].attn.num_heads, 100, 100)


def test_other_names_that_timm_knows_are_read_by_timms_own_rules(tmp_path: Path) -> None:
    teacher, built = timm_teacher("test_vit", tmp_path)
    clip = {f"visual.trunk.{name}": tensor for name, tensor in built.state_dict().items() if "head" not in name}
    assert load_teacher("timm:test_vit", saved(clip, tmp_path / "clip.pth")).digest == teacher.digest


def test_a_feature_map_is_read_row_by_row(tmp_path: Path) -> None:
    teacher, built = timm_teacher("test_convnext", tmp_path)
    tokens = teacher(image(160))
    wanted = built.forward_features(teacher.pixels(image(160)))  # (B, D, H, W)
    assert tokens.cls is None
    for row, column in ((0, 1), (3, 2)):
        token = tokens.patches[0, row * wanted.shape[-1] + column]
        torch.testing.assert_close(token, wanted[0, :, row, column], **CLOSE)
    with pytest.raises(UserError, match="timm:test_convnext has no attention whose logits can be read"):
        teacher.attention_logits(image(160), [1])


class Answering(nn.Module):
    """A network of timm's interface that answers what it is told to."""

    num_features = 5

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward_features(self, _pixels: Tensor) -> Any:
        return self.answer


def test_layouts_of_feature_maps() -> None:
    rows = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)  # (B, H, W, D)
    for answer in (rows, rows.permute(0, 3, 1, 2)):
        assert torch.equal(VisionTeacher("x", Answering(answer), _as_it_is).tokens(rows).patches, rows.flatten(1, 2))
    for answer in ([rows], rows[:, 0, 0]):
        with pytest.raises(UserError, match="teacher x: this network gives neither tokens nor one feature map"):
            VisionTeacher("x", Answering(answer), _as_it_is).tokens(rows)


def _as_it_is(images: Tensor, *, name: str) -> Tensor:
    return images


def test_preprocessing_of_timm_networks() -> None:
    pixels = WholeImage(mean=(0.5,), std=(0.25,), size=(4, 6), mode="nearest")
    grey = image(2, channels=1)
    assert pixels(grey).shape == (1, 1, 4, 6)
    assert pixels(grey)[0, 0, 0, 0] == pytest.approx((int(grey[0, 0, 0, 0]) / 255 - 0.5) / 0.25)
    with pytest.raises(UserError, match="teacher t reads images of 1 channels, not 3x2x2"):
        pixels(image(2), name="t")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm:vit_tini_patch16_224", "timm has no network 'vit_tini_patch16_224'; near it: .*vit_tiny_patch16_224"),
        ("timm:test_vit.nope", "teacher timm:test_vit.nope: .*nope"),
        ("timn:test_vit", "did you mean 'timm:NAME'"),
        ("dinov2-vit-x", "unknown teacher 'dinov2-vit-x'; did you mean 'dinov2-vit-"),
        ("digits-vit:x", "did you mean 'digits-vit'"),
    ],
)
def test_unknown_names(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_teacher(name)


# --- attention


def hooks_of(teacher: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in teacher.modules())


@pytest.mark.usefixtures("small")
def test_attention_and_features_in_one_pass(tmp_path: Path) -> None:
    teacher = teacher_of("dinov2-vit-b", tmp_path)
    with teacher.attention([2]) as logits:
        assert hooks_of(teacher) == 1
        tokens = teacher(image())
    assert hooks_of(teacher) == 0
    assert torch.equal(tokens.patches, teacher(image()).patches)
    assert torch.equal(logits[2], teacher.attention_logits(image(), [2])[2])
    with pytest.raises(UserError, match=r"layer 3: teacher dinov2-vit-b has blocks 1\.\.2"):
        teacher.attention_logits(image(), [1, 3])
    with pytest.raises(UserError, match="layer 0"):
        teacher.attention_logits(image(), [0])
    assert hooks_of(teacher) == 0


@pytest.mark.usefixtures("small")
def test_hooks_are_removed_after_an_exception(tmp_path: Path) -> None:
    teacher = teacher_of("dinov2-vit-b", tmp_path)
    with pytest.raises(UserError, match="RGB"):
        teacher.attention_logits(image(8), [1])
    with pytest.raises(AssertionError, match="did not run"), teacher.attention([1]):
        pass
    assert hooks_of(teacher) == 0


def test_attention_of_the_embedded_teacher() -> None:
    teacher = load_teacher("digits-vit")
    images = torch.from_numpy(digits("val").images[:3])
    logits = teacher.attention_logits(images, [1, 2])
    assert {layer: tuple(given.shape) for layer, given in logits.items()} == {1: (3, 4, 16, 16), 2: (3, 4, 16, 16)}
    whole: list[Tensor] = []
    block = teacher.get_submodule("network.blocks.0")
    with_class = []
    block.get_submodule("attn").register_forward_pre_hook(lambda _module, given: with_class.append(given[0]))
    teacher(images)
    block.get_submodule("attn")(with_class[0], logits=whole)
    torch.testing.assert_close(logits[1], whole[0][:, :, 1:, 1:], **CLOSE)
