"""The contract of data sources: by index, any kind of data, nothing held in memory; layouts by name and by path."""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from helpers import batches_of, digits, run, steps_of, tiny
from repa_eval import checkpoints
from repa_eval.commands.shared.named_images import open_named
from repa_eval.data.readers import decode
from repa_eval.data.readers.dataset_rows import open_rows
from repa_eval.data.readers.image_files import ImageFiles, open_images
from repa_eval.errors import UserError
from repa_eval.evaluation.alignment import align
from repa_eval.extractors import pixel_pca
from repa_eval.features.capture import Capture
from repa_eval.features.hidden_states import hidden_features
from repa_eval.features.model_input import ModelInput, model_input
from repa_eval.features.teacher import teacher_features
from repa_eval.interfaces.image_source import ImageSource, LatentScale, Samples, Subset, content_digest
from repa_eval.interfaces.images import DATA, Images, data, held_out_split, in_memory, load_data
from repa_eval.interfaces.teacher import load_teacher
from repa_eval.monitors.real_level import RealLevel
from repa_eval.runtime.seeding import generators
from repa_eval.train import batches

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), dtype=np.uint8)
LABELS = np.arange(12) % 3
PLUGIN = (Path(__file__).parent / "plugins" / "data_with_moments.py").read_text(encoding="utf-8")


@pytest.fixture
def layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    DATA.names()
    monkeypatch.setattr(DATA, "_objects", dict(DATA._objects))
    monkeypatch.setattr(DATA, "_origins", dict(DATA._origins))


@pytest.fixture
def moments(layouts: None, tmp_path: Path) -> str:
    """A user's file with a layout of moments beside images; the name of its data."""
    (tmp_path / "mine.py").write_text(PLUGIN)
    return DATA.load_file(tmp_path / "mine.py")


def in_arrays(count: int = 12) -> Images:
    return Images("mine", "all", PIXELS[:count].transpose(0, 3, 1, 2), LABELS[:count], 3, ("a", "b", "c"))


def class_folders(folder: Path, pixels: np.ndarray = PIXELS) -> Path:
    for index, image in enumerate(pixels):
        place = folder / "abc"[index % 3]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze()).save(place / f"{index:03d}.png")
    return folder


# --- the contract


def test_a_view_has_the_digest_of_a_copy() -> None:
    images, rows = in_arrays(), [7, 2, 2, 11]
    view = images.take(rows)
    copy = Images("mine", "all", images.images[rows], images.labels[rows], 3)
    assert view.digest() == copy.digest()
    assert isinstance(images.take(range(12)), Subset)
    assert images.take(range(12)).digest() == images.digest() == content_digest(images)
    assert np.shares_memory(images.head(5).images, images.images)
    assert images.take(rows).part(1, 3).digest() == images.take([2, 2]).digest()
    assert torch.equal(view.pixels([3, 0]), images.pixels([11, 7]))
    assert view.all_labels().tolist() == LABELS[rows].tolist()
    assert len(view.part(2, 99)) == 2
    with pytest.raises(UserError, match="mine:all has 4 images; 5 were asked for"):
        view.head(5)


def test_the_digest_sees_every_kind_of_data() -> None:
    images = in_arrays()
    moments = np.zeros((12, 4, 2, 2), dtype=np.float32)
    other = moments.copy()
    other[11, 0, 0, 0] = 1.0
    sources = [images, *(Images("m", "all", images.images, LABELS, 3, moments=each) for each in (moments, other))]
    assert len({source.digest() for source in sources}) == 3


def test_a_source_without_images_says_so() -> None:
    class Latents(ImageSource):
        name, split, num_classes = "mine", "train", 1
        gives, latent_shape = frozenset({"latents"}), (4, 2, 2)

        def __len__(self) -> int:
            return 6

        def fetch(self, indices: Sequence[int], kinds: Collection[str] = ()) -> Samples:
            return Samples(latents=torch.ones(len(indices), 4, 2, 2))

    source = Latents()
    assert len(source.digest()) == 12
    for asked in (lambda: source.pixels([0]), lambda: teacher_features(load_teacher("digits-vit"), source)):
        with pytest.raises(UserError, match="data mine has no images; it gives latents"):
            asked()
    with pytest.raises(UserError, match="data mine has no labels"):
        source.all_labels()
    with pytest.raises(UserError, match="data mine has no images"):
        _ = source.shape
    with pytest.raises(UserError, match=r"the latents are 4x2x2 \(.*\); this model reads 4x4x4"):
        model_input(source, (4, 4, 4))
    assert model_input(source, (4, 2, 2)).kind == "latents"


def test_captions_of_classes() -> None:
    pairs = load_data("digits-captions", "val")
    samples = pairs.fetch([5, 9], ("captions", "labels"))
    assert samples.images is None
    assert samples.captions == tuple(pairs.class_names[label] for label in samples.labels.tolist())


def test_a_latent_is_drawn_by_seed_and_index() -> None:
    reads = ModelInput("moments", LatentScale(scale=(2.0,), shift=(1.0, 0.0)))
    moments = torch.tensor([3.0, 5.0, 0.5, 0.0]).reshape(1, 4, 1, 1).expand(6, 4, 1, 1)  # means 3, 5; deviations 0.5, 0
    whole = reads(Samples(moments=moments), generators(0, "x", range(6)))
    parts = [reads(Samples(moments=moments[:2]), generators(0, "x", rows)) for rows in ([0, 1], [2, 3], [4, 5])]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(whole[:, 1], torch.full((6, 1, 1), 10.0))
    noise = torch.stack([torch.randn(2, 1, 1, generator=gen) for gen in generators(0, "x", range(6))])[:, 0]
    torch.testing.assert_close(whole[:, 0], (3.0 + 0.5 * noise - 1.0) * 2.0)
    assert reads.record()["latent_scale"] == [2.0]
    assert ModelInput().record() == {}  # records of models that read images stay as they were


# --- streamed files


def test_files_are_the_same_data_as_arrays(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "imgs")
    order = np.argsort(LABELS, kind="stable")
    arrays = Images("x", "train", PIXELS[order].transpose(0, 3, 1, 2), LABELS[order], 3)
    np.savez(tmp_path / "a.npz", arr_0=PIXELS[order], arr_1=LABELS[order])
    for spec in (f"folder:{folder}", str(folder), str(tmp_path / "a.npz")):
        source = load_data(spec, "train")
        assert not hasattr(source, "images"), "the whole split is held in memory"
        assert source.digest() == arrays.digest()
        assert np.array_equal(source.all_labels(), arrays.labels)
    source = load_data(str(folder), "val")
    assert (source.name, source.split, source.class_names) == (f"folder:{folder}", "all", ("a", "b", "c"))
    assert np.array_equal(in_memory(source).images, arrays.images)


def test_labels_are_read_without_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = load_data(str(class_folders(tmp_path / "imgs")), "train")
    monkeypatch.setattr(ImageFiles, "_pixels", None)
    assert source.all_labels().tolist() == sorted(LABELS.tolist())


def test_readers_share_an_archive(tmp_path: Path) -> None:
    """Forked readers of one file do not move each other's place in it."""
    pixels = np.random.default_rng(0).integers(0, 256, (96, 8, 8, 1), dtype=np.uint8)
    folder = class_folders(tmp_path / "imgs", pixels)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, file.relative_to(folder).as_posix())
    np.savez(tmp_path / "b.npz", arr_0=pixels)
    np.savez_compressed(tmp_path / "c.npz", arr_0=pixels)
    for name in ("a.zip", "b.npz", "c.npz"):
        source = load_data(str(tmp_path / name), "train")
        source.pixels([0])  # open in this process before the fork
        alone, both = (
            [batch.pixels for batch in batches.loader(source, tiny(num_workers=count), 0, range(8))] for count in (0, 2)
        )
        assert len(alone) == 6
        assert all(torch.equal(a, b) for a, b in zip(alone, both, strict=True)), name


def test_a_compressed_npz_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from repa_eval.data.readers import arrays

    unpacked = []
    unpack = arrays._Stream._unpack
    monkeypatch.setattr(arrays._Stream, "_unpack", lambda self: (unpacked.append(1), unpack(self))[1])
    np.savez_compressed(tmp_path / "a.npz", arr_0=PIXELS)
    source = open_images(tmp_path / "a.npz")
    for _ in range(2):  # passes from the beginning need no copy
        assert np.array_equal(source.pixels(range(12)).numpy(), PIXELS.transpose(0, 3, 1, 2))
    assert not unpacked
    for rows in ([9, 1], [3], [2], [11, 0]):
        assert np.array_equal(source.pixels(rows).numpy(), PIXELS[rows].transpose(0, 3, 1, 2))
    assert len(unpacked) == 1


def test_a_folder_is_measured_batch_by_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = digits("val").images[:200].transpose(0, 2, 3, 1)
    folder = class_folders(tmp_path / "imgs", pixels)
    asked: list[int] = []
    fetch = ImageFiles.fetch

    def spy(self: ImageFiles, indices: Sequence[int], kinds: Collection[str] = ("images", "labels")) -> Samples:
        if "images" in kinds:
            asked.append(len(indices))
        return fetch(self, indices, kinds)

    monkeypatch.setattr(ImageFiles, "fetch", spy)
    for name in ("chunks", "rows_at_once"):
        monkeypatch.setattr(f"repa_eval.interfaces.image_source.{name}.__defaults__", (16,))
    model = steps_of(tiny("repa"))[1].model
    streamed = load_data(str(folder), "test")
    rows = align(
        model, load_teacher("digits-vit"), streamed, layers=(1, 2), timesteps=(0.1,), capture=Capture(batch_size=16)
    )
    assert max(asked) == 16
    assert sum(asked) == 3 * 200 + 1  # the teacher, the model, the digest; one to see whether it fits
    held = in_memory(streamed)
    expected = align(
        model, load_teacher("digits-vit"), held, layers=(1, 2), timesteps=(0.1,), capture=Capture(batch_size=16)
    )
    assert [row.value for row in rows] == pytest.approx([row.value for row in expected], rel=1e-6)
    assert [row.protocol for row in rows] == [row.protocol for row in expected]


def test_a_folder_without_splits_has_no_level_of_real_images(tmp_path: Path) -> None:
    facts = {"data": str(class_folders(tmp_path / "imgs")), "extractor": "digits", "device": "cpu", "last_step": 3}
    rounds = [SimpleNamespace(num_samples=4)]
    run_of = SimpleNamespace(**facts, is_last=lambda step: step == 3, rounds=lambda step: rounds, name="run")
    level = RealLevel(run_of)  # type: ignore[arg-type]
    assert list(level(3, None)) == []  # type: ignore[arg-type]
    assert level.done(3, [])


def test_a_dataset_is_decoded_when_it_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    same = [Image.fromarray(image.squeeze()) for image in PIXELS]
    odd = [*same[:5], Image.fromarray(np.zeros((4, 8), np.uint8))]
    decoded: list[int] = []
    pixels = decode.pixels
    monkeypatch.setattr(decode, "pixels", lambda *words, **more: (decoded.append(1), pixels(*words, **more))[1])
    for images, labels in ((same, LABELS), (odd, LABELS[:6])):
        dataset = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
        decoded.clear()
        source = open_rows(dataset, name="hf:mine", split="train")
        assert source.all_labels().tolist() == labels.tolist()
        assert not decoded
    assert torch.equal(source.pixels([1, 4]), torch.from_numpy(PIXELS[[1, 4]].transpose(0, 3, 1, 2)))
    with pytest.raises(UserError, match=r"hf:mine: .* image 5 is not like the first \(8x4, not 8x8; 1 of 2 "):
        source.pixels([4, 5])


def test_pixel_components_of_streamed_images(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, streamed = pixel_pca.PixelPCA(), pixel_pca.PixelPCA()
    at_once.prepare(digits("val"))
    monkeypatch.setattr(pixel_pca, "AT_ONCE", 0)
    streamed.prepare(digits("val"))
    few = digits("val").pixels(range(9))
    torch.testing.assert_close(*(torch.from_numpy(np.abs(each(few).features)) for each in (streamed, at_once)))
    large = Images("large", "all", np.random.default_rng(0).integers(0, 256, (8, 3, 64, 64), np.uint8), LABELS[:8], 3)
    streamed.prepare(large)
    assert streamed.resize == "area means, 32x32"
    assert streamed(large.pixels([0, 1])).features.shape == (2, 32)


# --- layouts by name and path


def test_what_lies_at_a_path_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_folders(tmp_path / "imgs")
    class_folders(tmp_path / "digits")
    (tmp_path / "notes.txt").write_text("no images")
    monkeypatch.chdir(tmp_path)
    assert load_data("imgs", "train").name == "folder:imgs"
    assert load_data("digits", "val").digest() == digits("val").digest()  # a layout's name is not a path
    assert load_data("./digits", "val").name == "folder:./digits"
    assert load_data("folder:digits", "val").num_classes == 3
    with pytest.raises(UserError, match=r"notes\.txt: not a known data layout \(.*folder.*\); write KIND:notes\.txt"):
        load_data("notes.txt", "train")
    with pytest.raises(UserError, match=r"unknown data 'imags'.*; or name a path that exists"):
        load_data("imags", "train")


@pytest.mark.parametrize(
    ("given", "meant"),
    [("imags", "'imgs'"), ("digit", "'digits'"), ("npz:imgs", "'imgs'"), ("sub/imag", "'sub/image'"), ("x" * 9999, "")],
)
def test_what_a_wrong_name_is_near_to_is_said(
    given: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("imgs", "sub/image"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    said = f"; did you mean {meant}\\?" if meant else ""
    for opened in (lambda: load_data(given, "train"), lambda: open_named(given, split="train")):
        with pytest.raises(UserError, match=f"{said}.*digits, digits-captions, folder, hf|digits, .*{said}$") as caught:
            opened()
        assert len(str(caught.value)) < 400
        assert ("did you mean" in str(caught.value)) == bool(meant)


def test_a_folder_has_no_splits_and_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = str(class_folders(tmp_path / "imgs"))
    for split in ("train", "reference"):
        source = load_data(folder, split)
    assert not caplog.messages, "training images are no surprise"
    for split in ("val", "test", "test"):
        source = load_data(folder, split)
    assert caplog.messages == [
        f"folder:{folder} has no splits: all of its images are used, and training may have seen them"
    ]
    for view in (source, source.head(3), source.take([1, 2]), in_memory(source), in_memory(source).head(3)):
        assert (view.split, view.split_known) == ("all", False)
    assert digits("val").split_known


def test_a_layout_declares_its_held_out_split_and_its_paths(layouts: None, tmp_path: Path) -> None:
    assert held_out_split("digits") == "test-large"
    assert held_out_split(f"folder:{tmp_path}") == held_out_split(str(tmp_path)) == "test"

    def builder(rest: str, split: str) -> ImageSource:
        return Images(f"mine:{rest}", split, in_arrays().images, LABELS, 3)

    (tmp_path / "set" / "parts").mkdir(parents=True)
    decorated = data("mine", held_out="validation", recognises=lambda path: (path / "parts").is_dir())(builder)
    assert decorated is builder
    assert held_out_split("mine:x") == held_out_split(str(tmp_path / "set")) == "validation"
    assert load_data(str(tmp_path / "set"), "train").name == f"mine:{tmp_path / 'set'}"  # before the general `folder`
    assert open_named(str(tmp_path / "set"), split="train").split == "train"
    for refused in (
        lambda: open_named(str(tmp_path / "set"), split="train", resize=9),
        lambda: load_data(str(tmp_path / "set"), "train", resolution=9),
    ):
        with pytest.raises(UserError, match=r"set: its images of 8x8 cannot be resized to 9x9; .* \(.*: folder\b.*\)$"):
            refused()
    assert load_data(str(tmp_path / "set"), "train", resolution=8).shape == (1, 8, 8)
    resized = data("sized", resizes=True)(lambda rest, split, *, resolution=None: builder(f"{rest}{resolution}", split))
    assert resized("x", "train").name == "mine:xNone"
    assert (load_data("sized:x", "val").name, load_data("sized:x", "val", resolution=4).name) == (
        "mine:xNone",
        "mine:x4",
    )
    data("other", recognises=lambda path: (path / "parts").is_dir())(builder)
    with pytest.raises(UserError, match=r"fits several data layouts: write mine:.*set or other:.*set"):
        load_data(str(tmp_path / "set"), "train")


# --- a model that reads latents, beside a teacher that reads images


def test_a_layout_of_moments_trains_and_is_measured(moments: str, tmp_path: Path) -> None:
    options = {"data": moments, "split": "train", "patch_size": 1, "max_steps": 3, "enc_type": "digits-vit"}
    recipe = tiny("repa", **options)
    checkpoint = checkpoints.load(run(recipe, tmp_path / "run"))
    assert (checkpoint.model.config.in_channels, checkpoint.model.config.input_size) == (4, 4)
    assert checkpoint.latent_scale == load_data(moments, "train").latent_scale == LatentScale((2.0,), (0.5,))
    resolved, objective, images, teachers = steps_of(recipe)
    given: dict[str, Any] = {"reads": batches.reads_of(images, objective.model)}
    [batch] = batches_of(resolved, images, teachers, **given)
    assert batch.x.shape[1:] == (4, 4, 4)
    assert batch.images.shape[1:] == (1, 8, 8)
    [again], [later] = (batches_of(resolved, images, teachers, step=step, **given) for step in (0, 1))
    assert torch.equal(again.x, batch.x)
    assert not torch.equal(later.x, batch.x)
    shared = [batches_of(resolved, images, [], share=rows, **given)[0].x for rows in (range(4), range(4, 8))]
    assert torch.equal(torch.cat(shared), batch.x)

    rows = align(checkpoint.model, teachers[0], images, layers=(1,), timesteps=(0.1,), metrics=("cka",))
    assert rows[0].n == len(images)
    with pytest.raises(UserError, match=r"the images are 1x8x8 .*; this model reads latents 4x4x4"):
        align(checkpoint.model, teachers[0], digits("val").head(20), layers=(1,), timesteps=(0.1,))


def test_hidden_states_of_moments_do_not_depend_on_batches(moments: str) -> None:
    recipe, objective, images, _ = steps_of(tiny("repa", data=moments, split="train", patch_size=1))
    assert recipe.architecture.in_channels == 4
    found = [
        hidden_features(objective.model, images, layers=(2,), t=0.3, capture=Capture(batch_size=size))[2]
        for size in (7, 64)
    ]
    np.testing.assert_allclose(*found, atol=1e-5)
