"""Judges: Inception equal to torch-fidelity and clean-fid, DINOv2, CLIP, a user's own; features in any batches."""

from __future__ import annotations

import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from inception_weights import bare_inception, fill_inception, write_inception
from PIL import Image

from repa_eval.errors import Failure, UserError
from repa_eval.evaluation.sample_features import gather
from repa_eval.extractors import clip, dinov2
from repa_eval.extractors.inception import Inception
from repa_eval.extractors.shared.resize import pil_bicubic, resized, resized_uint8
from repa_eval.interfaces.extractor import Extractor, Features, load_extractor
from repa_eval.interfaces.images import Images
from repa_eval.interfaces.pixel_statistics import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from repa_eval.metrics.fid import frechet_distance, moments


def pictures(count: int, *shape: int, seed: int = 0) -> torch.Tensor:
    """Smooth images: noise alone looks the same to every convolution."""
    generator = torch.Generator().manual_seed(seed)
    small = 255 * torch.rand(count, 3, 6, 6, generator=generator)
    return F.interpolate(small, size=shape or (40, 32), mode="bilinear").to(torch.uint8)


@pytest.fixture(scope="module")
def network() -> Any:
    made = bare_inception()
    fill_inception(made)
    return made


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inception(tmp_path_factory.mktemp("weights") / "inception.pth")


@pytest.fixture(scope="module")
def judge(weights: Path) -> Inception:
    made = load_extractor("inception", weights)
    assert isinstance(made, Inception)
    return made


# --- Inception


def test_one_forward_is_torch_fidelitys(network: Any, judge: Inception) -> None:
    images = pictures(3)
    network.features_list = ["2048", "logits_unbiased"]
    kept: list[torch.Tensor] = []
    handle = network.Mixed_6d.branch1x1.register_forward_hook(lambda *words: kept.append(words[-1].clone()))
    pooled, logits = network(images)
    handle.remove()
    found = judge(images)
    assert found.logits is not None
    assert found.spatial is not None
    spatial = kept[0][:, :7].permute(0, 2, 3, 1).flatten(1).numpy()  # h, w, c
    for ours, theirs in ((found.features, pooled), (found.logits, logits), (found.spatial, spatial)):
        apart = np.linalg.norm(ours - np.asarray(theirs)) / np.linalg.norm(theirs)
        assert apart < 1e-5
    assert found.spatial.shape == (3, 2023)
    assert not np.allclose(found.spatial, kept[0][:, :7].flatten(1).numpy())  # c, h, w is another covariance


def test_features_do_not_depend_on_the_batch(judge: Inception) -> None:
    images = pictures(17)
    source = Images("made", "all", images.numpy(), np.zeros(17, np.int64), 1)
    seen = {}
    for size in (1, 7, 64):
        gathered = gather(source, judge, keep=("features", "logits"), stream=("spatial",), batch_size=size)
        assert gathered is not None
        seen[size] = gathered
    for size in (1, 7):
        for kind in ("features", "logits", "spatial"):
            a, b = seen[size].rows[kind], seen[64].rows[kind]
            assert np.linalg.norm(a - b) < 1e-7 * np.linalg.norm(b)  # 0 where the kernels do not depend on the number
        assert np.allclose(seen[size].moments["spatial"].m2, seen[64].moments["spatial"].m2, rtol=1e-6, atol=1e-9)


def test_clean_mode_is_clean_fids(tmp_path: Path, network: Any, weights: Path) -> None:
    from cleanfid import fid as clean_fid
    from cleanfid.resize import build_resizer

    images = pictures(3, 40, 32)
    for index, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    resizer = build_resizer("clean")
    theirs = np.stack([resizer(image) for image in images.permute(0, 2, 3, 1).numpy()]).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(resized(images, "pil-bicubic", 299).numpy(), theirs, atol=2e-3)

    def features(batch: torch.Tensor) -> torch.Tensor:
        """What clean-fid feeds its network, through the same weights."""
        x = (batch - 128) / 128
        for name, module in network.named_children():
            if name == "AvgPool":
                return module(x).flatten(1)
            x = module(x)
        raise AssertionError

    expected = clean_fid.get_folder_features(
        str(tmp_path), features, num_workers=0, batch_size=2, device=torch.device("cpu"), mode="clean", verbose=False
    )
    found = load_extractor("inception-clean", weights)(images).features
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-5
    plain = load_extractor("inception", weights)(images).features
    assert np.linalg.norm(plain - expected) / np.linalg.norm(expected) > 1e-3  # the resize rule matters


@pytest.mark.slow
def test_adm_mode_is_torch_fidelitys_fid(tmp_path: Path, weights: Path, judge: Inception) -> None:
    import torch_fidelity

    sets = [pictures(24, 32, 32, seed=seed) for seed in (1, 2)]
    for name, images in zip(("fake", "real"), sets, strict=True):
        (tmp_path / name).mkdir()
        for index, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
            Image.fromarray(image).save(tmp_path / name / f"{index:03d}.png")
    theirs = torch_fidelity.calculate_metrics(
        input1=str(tmp_path / "fake"),
        input2=str(tmp_path / "real"),
        cuda=False,
        fid=True,
        isc=True,
        isc_splits=4,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(weights),
        save_cpu_ram=True,
        cache=False,
        verbose=False,
        batch_size=8,
    )
    fake, real = (moments(judge(images).features) for images in sets)
    ours = frechet_distance(real.mean, real.covariance, fake.mean, fake.covariance)
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)


def test_channels_that_are_no_image(judge: Inception) -> None:
    with pytest.raises(UserError, match="extractor inception reads grey or RGB images, not such of 4 channels"):
        judge(torch.zeros(1, 4, 8, 8, dtype=torch.uint8))


# --- resizing


@pytest.mark.parametrize("size", [(8, 8), (64, 40), (299, 299), (500, 310)])
def test_resizing_by_matrices_is_torch_fidelitys(size: tuple[int, int]) -> None:
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    images = pictures(2, *size)
    theirs = interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(299, 299), align_corners=False)
    np.testing.assert_allclose(resized(images, "tf1-bilinear", 299).numpy(), theirs.numpy(), atol=2e-4)


def test_bicubic_weights_sum_to_one_and_the_result_is_clipped() -> None:
    assert torch.allclose(pil_bicubic(500, 299).sum(dim=1), torch.ones(299), atol=1e-5)
    edge = torch.zeros(1, 3, 20, 20, dtype=torch.uint8)
    edge[..., 10:] = 255
    assert float(resized(edge, "pil-bicubic", 299).min()) >= 0.0
    assert float(resized(edge, "pil-bicubic", 299).max()) <= 255.0


# --- DINOv2 and CLIP, at a size that a test can build


@pytest.fixture
def small_dinov2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(dinov2, "NAME", "vit_small_patch14_dinov2")
    state = timm.create_model(dinov2.NAME, num_classes=0, img_size=518).state_dict()
    generator = torch.Generator().manual_seed(0)
    state = {name: 0.05 * torch.randn(value.shape, generator=generator) for name, value in state.items()}
    torch.save({**state, "mask_token": torch.zeros(1, 384)}, tmp_path / "dinov2.pth")
    return tmp_path / "dinov2.pth"


def test_dinov2_gives_the_class_token_of_the_squashed_image(small_dinov2: Path) -> None:
    judge = load_extractor("dinov2", small_dinov2)
    images = pictures(2, 60, 90)
    found = judge(images)
    assert found.features.shape == (2, 384)
    assert found.logits is None
    assert not judge.has_logits
    whole = [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).numpy()]
    expected = np.stack([np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC)) for image in whole])
    assert np.array_equal(resized_uint8(images, 224).permute(0, 2, 3, 1).numpy(), expected)
    normalised = (expected / 255.0 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    np.testing.assert_allclose(dinov2.pixels(images).permute(0, 2, 3, 1).numpy(), normalised, atol=1e-5)
    assert np.allclose(judge(images[1:]).features, found.features[1:], atol=1e-5)


def test_dinov2_resamples_positions_as_published(small_dinov2: Path) -> None:
    table = torch.load(small_dinov2, weights_only=True)["pos_embed"]
    grid = table[:, 1:].reshape(1, 37, 37, 384).permute(0, 3, 1, 2)
    by_scale = F.interpolate(grid, scale_factor=(16.1 / 37, 16.1 / 37), mode="bicubic")
    judge: Any = load_extractor("dinov2", small_dinov2)
    held = judge.network.network.pos_embed
    assert torch.equal(held[:, 0], table[:, 0])
    assert torch.allclose(held[:, 1:], by_scale.permute(0, 2, 3, 1).flatten(1, 2), atol=1e-6)
    by_size = F.interpolate(grid, size=(16, 16), mode="bicubic")
    assert not torch.allclose(by_scale, by_size, atol=1e-4)  # the offset of 0.1 is seen


def test_clip_projects_the_embedding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip, "NAME", "vit_base_patch32_clip_quickgelu_224")
    monkeypatch.setattr(clip, "SIDE", 224)
    monkeypatch.setattr(clip, "WIDTH", 512)
    network = timm.create_model(clip.NAME, num_classes=512)
    torch.save(network.state_dict(), tmp_path / "clip.pt")
    judge = load_extractor("clip", tmp_path / "clip.pt")
    images = pictures(2, 60, 60)
    found = judge(images).features
    assert found.shape == (2, 512)
    with torch.no_grad():
        expected = network.eval()(clip.pixels(images))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    unclamped = clip.pixels(images) * torch.tensor(CLIP_STD).view(-1, 1, 1) + torch.tensor(CLIP_MEAN).view(-1, 1, 1)
    plain = F.interpolate(images.float() / 255, size=(224, 224), mode="bicubic", align_corners=False)
    np.testing.assert_allclose(unclamped.numpy(), plain.numpy(), atol=1e-5)


@pytest.mark.parametrize(("name", "file"), [("dinov2", "dinov2_vitl14_pretrain.pth"), ("clip", "open_clip_model")])
def test_offline_without_a_file_is_one_line(name: str, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(_: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    small = {"dinov2": "vit_small_patch14_dinov2", "clip": "vit_base_patch32_clip_quickgelu_224"}
    monkeypatch.setattr({"dinov2": dinov2, "clip": clip}[name], "NAME", small[name])
    monkeypatch.setattr("repa_eval.extractors.shared.timm_extractor.fetch", offline)
    with pytest.raises(
        Failure, match=f"extractor {name} has no weights here .*: fetch {file}.*--extractor-weights"
    ) as e:
        load_extractor(name)
    assert "\n" not in str(e.value)


def test_a_file_of_other_weights_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dinov2, "NAME", "vit_small_patch14_dinov2")
    torch.save({"w": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(Failure, match=r"^extractor dinov2: .*other\.pt does not hold its .* tensors") as caught:
        load_extractor("dinov2", tmp_path / "other.pt")
    assert "teacher" not in str(caught.value)


# --- a user's own

OWN = """
import torch
class Means:
    '''Channel means.'''
    def __init__(self, weights=None):
        self.scale = 1.0 if weights is None else float(weights.read_text())
    def __call__(self, images):
        return self.scale * images.float().mean((2, 3))
class Net(torch.nn.Module):
    name = "mine"
    def __init__(self):
        super().__init__()
        self.drop, self.fc = torch.nn.Dropout(0.9), torch.nn.Linear(3, 5)
    def forward(self, images):
        return self.drop(self.fc(images.float().mean((2, 3)) / 255))
class Picky:
    def __init__(self, a, b): pass
wrong = 3
class Flat:
    def __call__(self, images):
        return images.float().mean()
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_judge.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_users_own_extractor(own: Path) -> None:
    judge, images = load_extractor("own_judge:Means"), pictures(3)
    assert (judge.name, judge.has_logits) == ("means", False)
    np.testing.assert_allclose(judge(images).features, images.float().mean((2, 3)).numpy())
    (own / "scale.txt").write_text("2.5")
    scaled = load_extractor("own_judge:Means", own / "scale.txt")
    np.testing.assert_allclose(scaled(images).features, 2.5 * judge(images).features)
    network = load_extractor("own_judge:Net")
    assert network.name == "mine"
    assert np.array_equal(network(images).features, network(images).features)  # in eval mode
    assert network.digest != load_extractor("own_judge:Net").digest  # other random weights


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("no_such_module:Class", "cannot be imported .*; write module:Class"),
        ("own_judge:Nothing", "cannot be imported"),
        ("own_judge:Picky", "cannot be made"),
        ("own_judge:wrong", "is not callable"),
    ],
)
def test_what_is_no_extractor(own: Path, spec: str, text: str) -> None:
    with pytest.raises(UserError, match=text):
        load_extractor(spec)


def test_an_extractor_that_gives_no_rows(own: Path) -> None:
    with pytest.raises(UserError, match=r"extractor flat gives float32 \(\); needed are floats \(B, D\)"):
        load_extractor("own_judge:Flat")(pictures(2))


# --- gathering


class Counted(Extractor):
    """Sums, with NaN for images whose first pixel is 7."""

    name, digest, has_logits = "counted", "c", False

    def __call__(self, images: torch.Tensor) -> Features:
        values = images.double().flatten(1)[:, :5].float().numpy().copy()
        values[values[:, 0] == 7] = np.nan
        return Features(values)


def source_of(values: np.ndarray) -> Images:
    return Images("made", "all", values, np.zeros(len(values), np.int64), 1)


def test_nan_features_are_counted_over_all_batches() -> None:
    pixels = np.random.default_rng(0).integers(8, 255, (50, 1, 4, 4), dtype=np.uint8)
    pixels[[3, 20, 41], 0, 0, 0] = 7
    with pytest.raises(UserError, match="gives NaN or infinity for 3 of 50 images of made, first for image 3"):
        gather(source_of(pixels), Counted(), batch_size=8)


def test_streamed_and_kept_are_the_same() -> None:
    pixels = np.random.default_rng(0).integers(8, 255, (1100, 1, 4, 4), dtype=np.uint8)
    whole = gather(source_of(pixels), Counted(), keep=("features",), stream=("features",))
    assert whole is not None
    assert np.array_equal(whole.rows["features"], pixels.reshape(1100, -1)[:, :5].astype(np.float32))
    assert np.array_equal(whole.moments["features"].m2, moments(whole.rows["features"]).m2)
    with pytest.raises(UserError, match="made: no images"):
        gather(source_of(pixels[:0]), Counted())


class Worker:
    """One of several processes, whose parts are exchanged by hand."""

    def __init__(self, rank: int, count: int, parts: list[Any]) -> None:
        self.rank, self.count, self.parts = rank, count, parts

    def of(self, missing: Any, batch_size: int) -> list[int]:
        return [index for index in missing if index // batch_size % self.count == self.rank]

    def gather(self, parts: list[Any]) -> list[Any]:
        self.parts += parts
        return self.parts


@pytest.mark.parametrize("count", [2, 3, 9])
def test_several_processes_gather_what_one_does(count: int) -> None:
    pixels = np.random.default_rng(0).integers(8, 255, (130, 1, 4, 4), dtype=np.uint8)
    alone = gather(source_of(pixels), Counted(), keep=("features",), stream=("features",), batch_size=16)
    parts: list[Any] = []
    for rank in reversed(range(count)):  # the first process comes last here: it gets all of them
        merged = gather(
            source_of(pixels), Counted(), keep=("features",), stream=("features",), batch_size=16,
            workers=Worker(rank, count, parts),
        )  # fmt: skip
    assert alone is not None
    assert merged is not None
    assert np.array_equal(merged.rows["features"], alone.rows["features"])
    assert np.array_equal(merged.moments["features"].m2, alone.moments["features"].m2)


class Odd(Extractor):
    """Whatever it is made with, whatever the images are."""

    name, digest, has_logits = "odd", "o", False

    def __init__(self, found: Any) -> None:
        self.found = found

    def __call__(self, images: torch.Tensor) -> Features:
        return self.found  # type: ignore[no-any-return]


ROWS = np.arange(12.0).reshape(4, 3)
ODD: dict[str, Any] = {
    "three axes": Features(ROWS[:, :, None]),
    "too few rows": Features(ROWS[:2]),
    "no columns": Features(ROWS[:, :0]),
    "text": Features(np.array([["a"]] * 4)),
    "objects": Features(np.array([[object()]] * 4)),
    "complex": Features(ROWS.astype(complex)),
    "logits of too few rows": Features(ROWS, logits=ROWS[:1]),
    "nothing": None,
    "a number": 3,
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_features_is_one_line(kind: str) -> None:
    with pytest.raises(UserError, match=r"extractor odd gives .*; needed are floats \(B, D\)"):
        gather(source_of(np.zeros((4, 1, 2, 2), np.uint8)), Odd(ODD[kind]))


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int32])
def test_tensors_are_features(kind: torch.dtype) -> None:
    given = torch.from_numpy(ROWS).to(kind)
    for features in (given, given.requires_grad_(kind.is_floating_point)):
        found = gather(source_of(np.zeros((4, 1, 2, 2), np.uint8)), Odd(Features(features)))  # type: ignore[arg-type]
        assert found is not None
        np.testing.assert_array_equal(found.rows["features"], ROWS)
