"""`repa-eval prepare`: snippets, images, latents in the order of the paths; resumed after a kill; one-line errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import layout_files
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from layout_files import LABELS
from PIL import Image
from torch import Tensor

from helpers import digits, files_of, run, tiny
from repa_eval import checkpoints
from repa_eval.cli import main
from repa_eval.data.readers.decode import centre_crop
from repa_eval.interfaces.images import load_data
from repa_eval.interfaces.teacher import load_teacher
from repa_eval.memory_bank.bank import compressed
from repa_eval.memory_bank.files import load_bank
from repa_eval.preparation.images import _member
from repa_eval.sampling.generate import own_bank
from repa_eval.teachers.digits_vit import DigitsViT


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of ten images in two class folders, out of order on purpose."""
    monkeypatch.chdir(tmp_path)
    for index in (7, 2, 9, 0, 4, 1, 8, 3, 6, 5):
        file = Path(f"images/{'b' if index > 5 else 'a'}/{index}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits("val").images[index, 0]).save(file)
    return tmp_path


def prepare(*words: Any) -> Result:
    return CliRunner().invoke(main, ["prepare", *map(str, words), "--device", "cpu", "--quiet"])


def bank(*words: Any) -> dict[str, Any]:
    done = prepare(*words, "--bank", "--teacher", "digits-vit", "--json")
    assert done.exit_code == 0, done.output
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def fails(done: Result, code: int, text: str) -> None:
    assert done.exit_code == code, done.output
    assert text in done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1


def wanted(kind: str = "cls") -> Tensor:
    tokens = load_teacher("digits-vit")(torch.from_numpy(digits("val").images[:10]))
    assert tokens.cls is not None
    return tokens.cls if kind == "cls" else tokens.patches.mean(1)


@pytest.mark.parametrize("kind", ["cls", "mean"])
def test_a_snippet_per_image_in_the_order_of_the_paths(kind: str, here: Path) -> None:
    answer = bank("images", "bank.safetensors", "--snippet", kind)
    made = load_bank("bank.safetensors")
    torch.testing.assert_close(made.read(torch.arange(10)), wanted(kind))
    assert made.record == answer["record"]
    assert answer["bytes"] == Path("bank.safetensors").stat().st_size
    record = answer["record"]
    assert record["teacher_hash"] == load_teacher("digits-vit").digest
    assert record["snippet"] == {"cls": "class token", "mean": "token mean"}[kind]
    assert (record["num_images"], record["resolution"], record["form"]) == (10, "8x8", "full")
    assert sorted(files_of(here)) == ["bank.safetensors", *sorted(f for f in files_of(here) if "images" in f)]
    assert not Path(".bank.safetensors.partial").exists()


def test_the_svd_form_and_how_much_it_loses(here: Path) -> None:
    answer = bank("images", "bank.safetensors", "--form", "svd", "--latent-dim", 4)
    bank("images", "full.safetensors")
    full, made = load_bank("full.safetensors"), load_bank("bank.safetensors")
    assert made.form == "svd"
    for name, tensor in compressed(full, 4).tensors().items():
        assert torch.equal(made.tensors()[name], tensor)
    lost = made.read(torch.arange(10)) - full.read(torch.arange(10))
    length = full.read(torch.arange(10)).norm()
    assert answer["record"]["relative_error"] == pytest.approx(float(lost.norm() / length), rel=1e-3)
    assert answer["record"]["centred_error"] > answer["record"]["relative_error"] > 0
    assert answer["record"]["latent_dim"] == 4


def test_the_published_form(here: Path) -> None:
    bank("images", "bank.pth")
    content = torch.load("bank.pth", weights_only=True)
    torch.testing.assert_close(content, wanted())


def test_the_batch_size_does_not_change_the_snippets(here: Path) -> None:
    for size in (10, 3):
        bank("images", f"{size}.safetensors", "--batch-size", size)
    a, b = (load_bank(f"{size}.safetensors").read(torch.arange(10)) for size in (10, 3))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images the teacher was shown, batch by batch; it dies where a negative number is put in."""
    shown: list[int] = []
    forward = DigitsViT.forward

    def watch(self: DigitsViT, images: Tensor) -> Any:
        if shown and shown[-1] < 0:
            raise KeyboardInterrupt
        shown.append(len(images))
        if len(shown) == 2 and shown[0] == 3:
            shown.append(-1)
        return forward(self, images)

    monkeypatch.setattr(DigitsViT, "forward", watch)
    return shown


def test_a_killed_call_goes_on_where_it_was(here: Path, counted: list[int]) -> None:
    words = ("images", "bank.safetensors", "--bank", "--teacher", "digits-vit", "--batch-size", 3)
    done = prepare(*words)
    assert done.exit_code == 130
    assert counted == [3, 3, -1]
    assert not Path("bank.safetensors").exists()
    counted[:] = [0]
    assert prepare(*words).exit_code == 0
    assert counted == [0, 3, 1]  # the first six are not shown again
    torch.testing.assert_close(load_bank("bank.safetensors").read(torch.arange(10)), wanted())
    assert not Path(".bank.safetensors.partial").exists()
    before = Path("bank.safetensors").read_bytes()
    Path(".bank.safetensors.partial").mkdir()  # of a call that was killed after the bank was in its place
    Path(".bank.safetensors.4194305.tmp").write_bytes(b"half")  # a number that no process has
    counted[:] = [0]
    assert prepare(*words).exit_code == 0
    assert counted == [0]  # complete: nothing is computed
    assert not list(Path().glob(".bank*"))
    assert Path("bank.safetensors").read_bytes() == before


def test_another_bank_is_not_written_over(here: Path) -> None:
    bank("images", "bank.safetensors")
    bank("images", "bank.pth")
    before = Path("bank.safetensors").read_bytes()
    words = ("--bank", "--teacher", "digits-vit")
    done = prepare("images", "bank.safetensors", *words, "--snippet", "mean")
    fails(done, 2, "bank.safetensors contains another memory bank (snippet differ); choose another DEST or remove it")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("images/a/zero.png")
    done = prepare("images", "bank.safetensors", *words)
    fails(done, 2, "bank.safetensors contains another memory bank (data_hash, num_images differ)")
    done = prepare("images", "bank.pth", *words)
    fails(done, 2, "bank.pth contains another memory bank (it does not record its source)")
    assert Path("bank.safetensors").read_bytes() == before


def test_the_bank_of_the_trainer_is_the_prepared_one(here: Path) -> None:
    run(tiny("gmem"), here / "run")
    done = prepare("digits", "bank.safetensors", "--bank", "--split", "val", "--snippet", "mean")
    assert done.exit_code == 0, done.output
    assert "240 snippets (token mean of digits-vit" in done.stdout
    own = own_bank(checkpoints.load(here / "run/checkpoints/0000006.pt").model)
    assert own is not None
    assert torch.equal(load_bank("bank.safetensors").tensors()["snippets"], own.tensors()["snippets"])


def test_images_are_cropped_to_the_resolution(here: Path) -> None:
    Image.fromarray(np.arange(20 * 16, dtype=np.uint8).reshape(20, 16)).save("images/a/large.png")
    fails(prepare("images", "x.pth", "--bank", "--teacher", "digits-vit"), 2, "images of different sizes")
    answer = bank("images", "bank.safetensors", "--resolution", 8)
    assert (answer["record"]["resize"], answer["record"]["num_images"]) == ("centre-crop-8", 11)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("images out --form svd", "--form does not apply without --bank"),
        ("images out --teacher digits-vit", "--teacher does not apply without --bank"),
        ("images bank.pth --bank --vae x", "--vae does not apply to --bank"),
        ("images images", "images is not empty, and `repa-eval prepare` did not make it; choose another DEST"),
        ("images out --vae .", "--vae .: the folder contains no config.json of an autoencoder"),
        ("images bank.npz --bank", "bank.npz: a memory bank is a .safetensors file, or .pth in the published form"),
        ("nowhere bank.pth --bank", "'nowhere' is not a folder, .zip, .npz or data set"),
        ("digits bank.pth --bank --resolution 16", "data digits: its images of 8x8 cannot be resized to 16x16"),
        ("images bank.pth --bank --teacher digits-wit", "did you mean 'digits-vit'"),
        ("images bank.pth --bank --teacher digits-vit --form svd --latent-dim 97",
         "--latent-dim 97: snippets of digits-vit have 96 entries"),
        ("images bank.pth --bank --teacher digits-vit --form svd --latent-dim 40",
         "latent_dim 40: these 10 snippets span 9 directions only"),
        ("images bank.pth --bank --teacher digits-vit --teacher-weights none.pt", "teacher weights 'none.pt' do not"),
        ("images bank.pth --bank --form tiny", "--form"),
        ("images bank.pth --bank --latentdim 3", "did you mean --latent-dim?"),
    ],
)  # fmt: skip
def test_what_cannot_be_prepared(words: str, text: str, here: Path) -> None:
    fails(prepare(*words.split()), 2, text)
    assert not Path("bank.pth").exists()


# --- images and latents


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny AutoencoderKL that halves the side."""
    import diffusers

    folder = tmp_path_factory.mktemp("vae")
    torch.manual_seed(0)
    autoencoder = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4,
    )  # fmt: skip
    autoencoder.save_pretrained(folder)
    return folder


def photographs(count: int = 7) -> None:
    """RGB images of different sizes in two class folders."""
    random = np.random.RandomState(0)
    for index in range(count):
        file = Path(f"photos/{'b' if index > 3 else 'a'}/{index}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.randint(0, 255, (20 + index, 36, 3), dtype=np.uint8)).save(file)


def made(*words: Any) -> dict[str, Any]:
    done = prepare(*words, "--json")
    assert done.exit_code == 0, done.output
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_images_and_latents_in_the_official_layout(vae: Path, here: Path) -> None:
    import diffusers

    photographs()
    answer = made("photos", "out", "--resolution", 16, "--vae", vae, "--batch-size", 3)
    assert answer["made"] == {"images": 7, "vae-sd": 7}
    assert answer["record"] == json.loads(Path("out/prepare.json").read_text())
    names = [f"00000/img{index:08d}.png" for index in range(7)]
    labels = [0, 0, 0, 0, 1, 1, 1]
    listing = json.loads(Path("out/images/dataset.json").read_text())["labels"]
    assert listing == [list(pair) for pair in zip(names, labels, strict=True)]
    listing = json.loads(Path("out/vae-sd/dataset.json").read_text())["labels"]
    assert listing == [[f"00000/img-mean-std-{index:08d}.npy", label] for index, label in enumerate(labels)]
    autoencoder = diffusers.AutoencoderKL.from_pretrained(vae)
    for index, name in enumerate(names):
        with (
            Image.open(Path("out/images") / name) as image,
            Image.open(sorted(Path("photos").rglob("*.png"))[index]) as source,
        ):
            pixels = np.asarray(image)
            assert np.array_equal(pixels, np.asarray(centre_crop(source, 16)))
        moments = np.load(f"out/vae-sd/00000/img-mean-std-{index:08d}.npy")
        assert (moments.dtype, moments.shape) == (np.float32, (8, 8, 8))
        x = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None].float() / 127.5 - 1
        with torch.no_grad():
            posterior = autoencoder.encode(x).latent_dist
        wanted = torch.cat([posterior.mean, posterior.std], dim=1)[0]
        torch.testing.assert_close(torch.from_numpy(moments), wanted, rtol=1e-4, atol=1e-4)


def test_a_folder_per_thousand() -> None:
    assert _member("images", 1234567) == "01234/img01234567.png"
    assert _member("vae-sd", 999) == "00000/img-mean-std-00000999.npy"


def test_a_killed_preparation_gives_the_same_files(vae: Path, here: Path) -> None:
    photographs()
    words = ("--resolution", 16, "--vae", vae, "--batch-size", 3)
    made("photos", "whole", *words)
    made("photos", "part", *words)
    whole = files_of(here / "whole")
    for name in ("images/dataset.json", "images/00000/img00000004.png", "vae-sd/00000/img-mean-std-00000001.npy"):
        (here / "part" / name).unlink()
    assert made("photos", "part", *words)["made"] == {"images": 1, "vae-sd": 1}
    assert files_of(here / "part") == whole
    assert made("photos", "part", *words)["made"] == {"images": 0, "vae-sd": 0}


def test_what_a_killed_preparation_left_of_a_file_goes(here: Path) -> None:
    assert prepare("images", "out").exit_code == 0
    half = Path("out/images/00000/.img00000003.png.4194305.tmp")  # a number that no process has
    half.write_bytes(b"half")
    assert prepare("images", "out").exit_code == 0
    assert not half.exists()


def test_latents_can_be_added_to_images(vae: Path, here: Path) -> None:
    photographs()
    made("photos", "out", "--resolution", 16)
    assert not Path("out/vae-sd").exists()
    assert made("photos", "out", "--resolution", 16, "--vae", vae)["made"] == {"images": 0, "vae-sd": 7}
    assert "vae_hash" in json.loads(Path("out/prepare.json").read_text())
    done = prepare("photos", "out", "--resolution", 8)
    why = "out was prepared with different settings (data_hash, resize, resolution differ)"
    fails(done, 2, f"{why}; choose another DEST")


def test_images_that_a_vae_cannot_encode(vae: Path, here: Path) -> None:
    photographs()
    fails(prepare("images", "out", "--vae", vae), 2, "encodes RGB images; these are grey")
    fails(prepare("photos", "out", "--vae", vae, "--resolution", 15), 2, "a multiple of 2; these are 15x15")
    fails(prepare("photos", "out"), 2, "images of different sizes")
    assert not Path("out").exists()
    assert made("images", "grey")["made"] == {"images": 10}
    with Image.open("grey/images/00000/img00000000.png") as image:
        assert np.array_equal(np.asarray(image), digits("val").images[0, 0])


def test_what_is_prepared_can_be_read_back(vae: Path, here: Path) -> None:
    photographs()
    made("photos", "out", "--resolution", 16, "--vae", vae)
    source = load_data("out", "train")
    assert source.gives == {"images", "moments", "labels"}
    assert source.all_labels().tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert source.class_names == tuple(sorted({path.parent.name for path in Path("photos").rglob("*.png")}))
    assert (source.shape, source.latent_shape, source.num_classes) == ((3, 16, 16), (4, 8, 8), 2)
    plain = load_data("folder:photos", "train", resolution=16)
    assert torch.equal(source.pixels([6, 0]), plain.pixels([6, 0]))
    for index, moments in zip([5, 1], source.fetch([5, 1], ("moments",)).moments, strict=True):
        assert np.array_equal(moments, np.load(f"out/vae-sd/00000/img-mean-std-{index:08d}.npy"))
    record = json.loads(Path("out/prepare.json").read_text())
    assert source.latent_record == {"vae": vae.name, "vae_hash": record["vae_hash"]}
    assert load_data("out/images", "train").class_names == source.class_names


@pytest.mark.parametrize("form", ["images", "images.zip"])
@pytest.mark.parametrize("labels", [LABELS, None])
def test_images_of_the_official_layout_keep_their_labels(form: str, labels: Any, vae: Path, here: Path) -> None:
    layout_files.repa(Path("folder"), labels=labels)
    layout_files.repa_zips(Path("zips"))
    if labels is None:
        layout_files.zipped(Path("folder/images"), Path("zips/images.zip"))
    source = Path("folder" if form == "images" else "zips") / form
    made(source, "out", "--vae", vae)
    expected = None if labels is None else [[f"00000/img{i:08d}.png", int(y)] for i, y in enumerate(LABELS)]
    assert json.loads(Path("out/images/dataset.json").read_text())["labels"] == expected
    read = load_data("out", "train")
    assert np.array_equal(read.pixels(range(7)), layout_files.PIXELS.transpose(0, 3, 1, 2))
    assert ("labels" in read.gives) is (labels is not None)
    made("out", "again")  # and once more, from what it wrote itself
    assert json.loads(Path("again/images/dataset.json").read_text())["labels"] == expected


def test_latents_alone_hold_nothing_to_prepare(here: Path) -> None:
    layout_files.lightning(Path("shards"))
    fails(prepare("shards", "out"), 2, "data shards:shards has no images; it gives labels, latents")
    assert not Path("out").exists()
