"""Models of latents on plain images: encoded by a VAE, drawn, scaled; equal to a path that is written out here."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

import official_files as official
import repa_eval
from helpers import torchrun, wake
from repa_eval import checkpoints
from repa_eval.cli import main
from repa_eval.commands.shared.checkpoint import class_token_teacher
from repa_eval.config import from_dict
from repa_eval.diffusion.model import DiffusionModel
from repa_eval.errors import UserError
from repa_eval.evaluation.alignment import align
from repa_eval.features import capture as capturing
from repa_eval.features.capture import Capture
from repa_eval.features.encoded import EncodedImages, encode_images
from repa_eval.features.hidden_states import hidden_features
from repa_eval.features.model_input import LatentReading, latent_reading
from repa_eval.features.preflight import checked_input, warn_of_scale
from repa_eval.interfaces.architecture import MODELS
from repa_eval.interfaces.image_source import ImageSource, LatentScale, Samples
from repa_eval.interfaces.images import Images, load_data
from repa_eval.interfaces.teacher import RecordedTeacher, Teacher, TeacherClassTokens, Tokens
from repa_eval.models.sit import SiT, SiTConfig
from repa_eval.probes.splits import Splits
from repa_eval.sampling.vae import VaeDecoder, VaeEncoder, decoder_for, open_vae

SIDE, COUNT, SCALE, SHIFT = 16, 20, 0.7, 0.25
PLUGIN = Path(__file__).parent / "plugins" / "own_teacher.py"
WIDTHS = {"depth": 2, "hidden_size": 32, "num_heads": 2, "patch_size": 2, "in_channels": 4, "input_size": 8}


def photographs() -> list[np.ndarray]:
    """Pieces of real photographs, 36x44 pixels, two of them beside each other in each."""
    pictures = load_sample_images().images
    places = [(60 * (i // 2 % 5), 80 * (i // 10) + 40 * (i % 2)) for i in range(COUNT)]
    return [pictures[i % 2][top : top + 36, left : left + 44] for i, (top, left) in enumerate(places)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs in two class folders, a VAE, and a checkpoint as REPA's trainer writes it."""
    place = tmp_path_factory.mktemp("latents")
    for index, pixels in enumerate(photographs()):
        file = place / "photos" / f"{index // 10}" / f"{index:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    torch.manual_seed(0)
    diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, scaling_factor=SCALE, shift_factor=SHIFT,
    ).save_pretrained(place / "vae")  # fmt: skip
    network = SiT(SiTConfig(**WIDTHS, num_classes=10))
    wake(network)
    args = {**official.REPA, "num_classes": 10, "encoder_depth": 2, "num_heads": 2}
    official.trainer_file(place / "0400000.pt", network.state_dict(), **args)
    return place


@pytest.fixture
def images(folder: Path) -> ImageSource:
    return load_data(str(folder / "photos"), "test", resolution=SIDE)


@pytest.fixture
def encoder(folder: Path) -> VaeEncoder:
    return VaeEncoder(folder / "vae", "cpu")


# --- written out once more


def cropped(pixels: np.ndarray) -> np.ndarray:
    """ADM's centre crop: halved by boxes while twice as large, then bicubic, then cut; uint8 (H, W, C)."""
    picture = Image.fromarray(pixels)
    while min(picture.size) >= 2 * SIDE:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    factor = SIDE / min(picture.size)
    size = (round(picture.width * factor), round(picture.height * factor))
    array = np.array(picture.resize(size, Image.Resampling.BICUBIC))
    top, left = (array.shape[0] - SIDE) // 2, (array.shape[1] - SIDE) // 2
    return array[top : top + SIDE, left : left + SIDE]


def draws(stream: str, index: int) -> Tensor:
    """Standard normal numbers that depend on (seed 0, stream, index) alone."""
    digest = hashlib.blake2b(repr((0, stream, index)).encode(), digest_size=8).digest()
    return torch.randn((4, 8, 8), generator=torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1))


@torch.no_grad()
def written_out(folder: Path, t: float, *, posterior: str, reverse: bool) -> np.ndarray:
    """Hidden states (layers, N, D): crop, encode, draw, shift and scale, noise, run, average the tokens."""
    vae = diffusers.AutoencoderKL.from_pretrained(folder / "vae").eval()
    network = checkpoints.load(folder / "0400000.pt").network
    found: dict[int, list[Tensor]] = {0: [], 1: []}
    for layer in found:
        network.blocks[layer].register_forward_hook(lambda _m, _i, out, layer=layer: found[layer].append(out))
    for index, pixels in enumerate(photographs()):
        x = torch.from_numpy(cropped(pixels).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        moments = vae.encode(x).latent_dist
        z = moments.mean if posterior == "mean" else moments.mean + moments.std * draws("align posterior", index)
        x_t = (1 - t) * (z - SHIFT) * SCALE + t * draws("align", index)
        network(x_t, torch.tensor([1 - t if reverse else t]), torch.tensor([10]))
    return np.stack([torch.cat(outputs).mean(1).numpy() for outputs in found.values()])


@pytest.mark.parametrize("posterior", ["sample", "mean"])
@pytest.mark.parametrize("system", ["REPA", "SiT"])  # t = 1 is noise; t = 0 is noise
def test_hidden_states_equal_a_path_written_out(system: str, posterior: str, folder: Path) -> None:
    checkpoint = checkpoints.load(folder / "0400000.pt", overrides={"system": system})
    given: dict[str, Any] = {"vae": folder / "vae", "resolution": SIDE, "posterior": posterior}
    found = repa_eval.features(checkpoint, folder / "photos", timesteps=[0.3], cache=False, **given)[:, 0]
    expected = written_out(folder, 0.3, posterior=posterior, reverse=system == "SiT")
    np.testing.assert_allclose(found, expected, atol=2e-5)
    other = written_out(folder, 0.3, posterior={"sample": "mean", "mean": "sample"}[posterior], reverse=False)
    assert np.abs(found - other).max() > 1e-3


# --- kinds of autoencoders


class AutoencoderRAE(nn.Module):
    """Stands for the one of diffusers, which needs transformers: pixels in 0..1, latents already scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.config = SimpleNamespace(
            encoder_hidden_size=3, num_channels=3, encoder_input_size=8, encoder_patch_size=2, scaling_factor=0.5
        )

    def encode(self, x: Tensor) -> Any:
        assert 0 <= x.min() <= x.max() <= 1
        return SimpleNamespace(latent=nn.functional.adaptive_avg_pool2d(x, 4) * self.weight)

    def decode(self, z: Tensor) -> Any:
        return SimpleNamespace(sample=nn.functional.interpolate(z, scale_factor=4.0))


def compressing() -> Any:
    torch.manual_seed(0)
    blocks: dict[str, Any] = {"encoder_block_out_channels": (8, 16), "decoder_block_out_channels": (8, 16)}
    blocks |= {"encoder_layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1)}
    blocks |= {"encoder_qkv_multiscales": ((), ()), "decoder_qkv_multiscales": ((), ())}
    return diffusers.AutoencoderDC(
        latent_channels=4, attention_head_dim=8, encoder_block_types="ResBlock", decoder_block_types="ResBlock",
        downsample_block_type="pixel_unshuffle", upsample_block_type="pixel_shuffle", scaling_factor=0.4, **blocks,
    ).eval()  # fmt: skip


def per_channel() -> Any:
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4, latent_channels=2,
        up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=0.5, latents_mean=(1.0, 2.0), latents_std=(4.0, 0.25),
    ).eval()  # fmt: skip


KINDS: dict[str, tuple[Callable[[], Any], str, tuple[int, int, int], LatentScale]] = {
    "AutoencoderKL": (per_channel, "moments", (2, 8, 8), LatentScale((0.125, 2.0), (1.0, 2.0))),
    "AutoencoderDC": (compressing, "latents", (4, 8, 8), LatentScale((0.4,), (0.0,))),
    "AutoencoderRAE": (AutoencoderRAE, "latents", (3, 4, 4), LatentScale()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_autoencoder(kind: str, images: ImageSource) -> None:
    build, gives, shape, scale = KINDS[kind]
    network = build()
    source = EncodedImages(images, VaeEncoder(network, "cpu"))
    assert (source.latent_shape, source.latent_scale) == (shape, scale)
    assert gives in source.gives
    samples = source.fetch([3, 17, 4], ("images", "labels", gives))
    pixels = torch.from_numpy(np.stack([cropped(photographs()[i]) for i in (3, 17, 4)])).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        x = pixels / 255 if kind == "AutoencoderRAE" else pixels / 127.5 - 1
        found = network.encode(x)
        parts = [found.latent_dist.mean, found.latent_dist.std] if gives == "moments" else [found.latent]
        expected = torch.cat(parts, dim=1)
        latent = expected[:, : shape[0]]
        z = (latent - torch.tensor(scale.shift).view(-1, 1, 1)) * torch.tensor(scale.scale).view(-1, 1, 1)
        image = network.decode(latent).sample
    torch.testing.assert_close(getattr(samples, gives), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(source.latent_scale(latent), z)
    decoded = VaeDecoder(open_vae(network, "cpu"))(z)
    torch.testing.assert_close(decoded, image * 2 - 1 if kind == "AutoencoderRAE" else image, atol=1e-4, rtol=1e-4)
    assert samples.labels is not None
    assert samples.labels.tolist() == [0, 1, 0]


@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderDC"])
def test_the_class_is_read_from_the_folder(kind: str, tmp_path: Path) -> None:
    KINDS[kind][0]().save_pretrained(tmp_path / "pipeline" / "vae")
    for place in ("pipeline", "pipeline/vae"):  # a whole pipeline holds it as vae/
        assert open_vae(tmp_path / place, "cpu").kind == kind


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (
            {"_class_name": "VQModel"},
            "is of the class VQModel; one of AutoencoderKL, AutoencoderDC, AutoencoderRAE is needed",
        ),
        ({"_class_name": "AutoencoderKL", "latent_channels": 5}, "cannot be opened"),
        ([], "is damaged: expected an object"),
    ],
)
def test_a_vae_that_cannot_be_opened_is_one_line(config: Any, text: str, folder: Path, tmp_path: Path) -> None:
    kept = json.loads((folder / "vae" / "config.json").read_text())
    weights = "diffusion_pytorch_model.safetensors"
    (tmp_path / weights).write_bytes((folder / "vae" / weights).read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({**kept, **config} if isinstance(config, dict) else config))
    with pytest.raises(UserError, match=text):
        open_vae(tmp_path, "cpu")


def test_a_vae_that_lacks_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = "diffusion_pytorch_model.safetensors"
    state = load_file(folder / "vae" / weights)
    name = next(name for name in sorted(state) if name.startswith("encoder.conv_in"))
    save_file({key: tensor for key, tensor in state.items() if key != name}, tmp_path / weights)
    (tmp_path / "config.json").write_bytes((folder / "vae" / "config.json").read_bytes())
    with pytest.raises(UserError, match=rf"lacks 1 tensors, such as {name}"):
        open_vae(tmp_path, "cpu")


# --- what is encoded is kept


class Counting:
    """An encoder that counts the images it is given, and dies where it is told to."""

    def __init__(self, encoder: VaeEncoder, dies_at: int = 1 << 30) -> None:
        self.encoder, self.seen, self.dies_at = encoder, 0, dies_at
        self.kind, self.digest, self.scale = encoder.kind, encoder.digest, encoder.scale
        self.latent_shape, self.record = encoder.latent_shape, encoder.record

    def __call__(self, pixels: Tensor) -> Tensor:
        if self.seen >= self.dies_at:
            raise KeyboardInterrupt
        self.seen += len(pixels)
        return self.encoder(pixels)


def test_an_image_is_encoded_once(images: ImageSource, encoder: VaeEncoder, tmp_path: Path) -> None:
    counting = Counting(encoder)
    source = EncodedImages(images, counting, cache=tmp_path)
    first = source.fetch([18, 2], ("moments",)).moments
    assert first is not None
    assert counting.seen == COUNT  # both blocks of 16
    again = EncodedImages(images, counting, cache=tmp_path).fetch(range(COUNT), ("moments",)).moments
    assert again is not None
    assert counting.seen == COUNT
    assert torch.equal(again[[18, 2]], first)
    assert torch.equal(again, torch.cat([encoder(images.pixels(range(16))), encoder(images.pixels(range(16, COUNT)))]))
    part = source.part(4, 12)
    assert (len(part), part.digest()) == (8, images.part(4, 12).digest())
    torch.testing.assert_close(part.fetch([0], ("moments",)).moments, again[4:5])
    other = Counting(encoder)
    other.digest = "another"
    EncodedImages(images, other, cache=tmp_path).fetch([0], ("moments",))
    assert other.seen == 16


def test_latents_without_a_cache_are_gone_with_the_source(images: ImageSource, encoder: VaeEncoder) -> None:
    source = EncodedImages(images, encoder)
    source.fetch([0], ("moments",))
    place = Path(source._temporary.name)
    assert place.is_dir()
    del source
    assert not place.exists()


def repa_eval_command(*words: Any) -> Result:
    return CliRunner().invoke(main, ["--plugin", str(PLUGIN), *map(str, words), "--device", "cpu", "--quiet"])


def words_of(folder: Path) -> list[Any]:
    return [
        "align", "--ckpt", folder / "0400000.pt", "--data", folder / "photos", "--resolution", SIDE, "--vae",
        folder / "vae", "--teacher", "oriented-gradients", "--timesteps", "0.1,0.4", "--batch-size", 7, "--json",
    ]  # fmt: skip


def rows_of(text: str) -> Any:
    answer = json.loads(text)
    return answer["rows"], answer["protocols"]


def test_a_killed_call_goes_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "undisturbed"))
    undisturbed = repa_eval_command(*words_of(folder))
    assert undisturbed.exit_code == 0, undisturbed.stderr
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "killed"))
    encode, seen = VaeEncoder.__call__, [0]

    def dies(self: VaeEncoder, pixels: Tensor) -> Tensor:
        if seen[0]:
            raise KeyboardInterrupt
        seen[0] += len(pixels)
        return encode(self, pixels)

    def counts(self: VaeEncoder, pixels: Tensor) -> Tensor:
        seen[0] += len(pixels)
        return encode(self, pixels)

    monkeypatch.setattr(VaeEncoder, "__call__", dies)
    assert repa_eval_command(*words_of(folder)).exit_code == 130
    assert seen == [16]
    monkeypatch.setattr(VaeEncoder, "__call__", counts)
    again = repa_eval_command(*words_of(folder))
    assert seen == [COUNT]  # what the first call encoded is not encoded again, and two timesteps encode once
    assert rows_of(again.stdout) == rows_of(undisturbed.stdout)
    assert not list((tmp_path / "killed").rglob("*.npy"))
    [protocol] = rows_of(again.stdout)[1].values()
    said = {"vae": "vae", "posterior": "sampled by (seed, index)", "latent_scale": [SCALE], "latent_shift": [SHIFT]}
    assert said.items() <= protocol.items()
    assert len(protocol["vae_hash"]) == 12
    assert {row["n"] for row in rows_of(again.stdout)[0]} == {COUNT}


def test_two_processes_give_the_rows_of_one(folder: Path, tmp_path: Path) -> None:
    alone = repa_eval_command(*words_of(folder))
    words = [*words_of(folder), "--cache", tmp_path / "both", "--device", "cpu", "--quiet"]
    both = torchrun(2, "--plugin", PLUGIN, *map(str, words))
    assert rows_of(both) == rows_of(alone.stdout)


# --- the scale


RECORDED, GIVEN, OF_DATA = LatentScale((2.0,)), LatentScale((3.0,), (1.0,)), LatentScale((5.0,))


@pytest.mark.parametrize(
    ("recorded", "given", "scale", "says"),
    [
        (None, None, None, ""),
        (RECORDED, None, RECORDED, "the checkpoint"),
        (None, GIVEN, GIVEN, "the user"),
        (None, (3.0, 1.0), GIVEN, "the user"),
        (RECORDED, (2.0, 0.0), RECORDED, "the user"),
        (RECORDED, GIVEN, GIVEN, "the user; the checkpoint records {'latent_scale': [2.0], 'latent_shift': [0.0]}"),
    ],
)
def test_who_says_the_scale(recorded: Any, given: Any, scale: Any, says: str) -> None:
    reading = latent_reading(recorded, given)
    assert (reading.scale, reading.scale_from) == (scale, says)


def with_latents(count: int = 6, *, scale: LatentScale | None = None) -> Images:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, 3, SIDE, SIDE), dtype=np.uint8)
    moments = np.abs(rng.standard_normal((count, 8, 8, 8))).astype(np.float32)
    labels, scale = np.arange(count) % 2, scale or LatentScale()
    return Images("mine", "test", pixels, labels, 2, moments=moments, latent_scale=scale)


def test_the_checkpoints_scale_wins_over_the_datas(folder: Path) -> None:
    checkpoint = checkpoints.load(folder / "0400000.pt")
    teacher = Counted()
    images = with_latents(scale=OF_DATA)

    def scale(**given: Any) -> list[float]:
        [row] = repa_eval.align(checkpoint, teacher, images, layers=1, timesteps=0.1, metrics="cka", **given).rows
        assert row.record is not None
        return list(row.record["latent_scale"])

    assert scale() == [5.0]
    checkpoint.recipe["latent_scale"] = 2.0
    assert scale() == [2.0]
    assert scale(latent_scale=3.0) == [3.0]


@pytest.mark.parametrize(
    ("text", "scale", "shift"),
    [("0.4", [0.4], [0.0]), ("0.4,1", [0.4], [1.0]), ("stats.pt", [1.0, 2.0, 0.5, 4.0], [0.0, 1.0, 2.0, 3.0])],
)
def test_the_scale_by_option(
    text: str, scale: list[float], shift: list[float], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mean, std = torch.arange(4.0).view(1, 4, 1, 1), torch.tensor([1, 0.5, 2, 0.25]).view(1, 4, 1, 1)
    torch.save({"mean": mean, "std": std}, "stats.pt")  # as GMem writes it
    done = repa_eval_command(*words_of(folder), "--layers", "1", "--latent-scale", text)
    assert done.exit_code == 0, done.stderr
    [protocol] = rows_of(done.stdout)[1].values()
    assert (protocol["latent_scale"], protocol["latent_shift"]) == (scale, shift)
    assert protocol["latent_scale_from"] == "the user"


@pytest.mark.parametrize("text", ["0", "1,2,3", "a", "nothing.pt"])
def test_a_scale_that_is_none_is_one_line(text: str, folder: Path) -> None:
    done = repa_eval_command(*words_of(folder), "--latent-scale", text)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: --latent-scale '{text}'")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("scale", [LatentScale((1.0, 2.0)), LatentScale((1.0,), (0.0,) * 3), LatentScale((0.0,))])
def test_a_scale_that_does_not_fit_the_channels_is_refused(scale: LatentScale, folder: Path) -> None:
    with pytest.raises(UserError, match="for 4 channels 1 or 4 are needed, and no scale of 0"):
        checked_input(model_of(), with_latents(), Capture(latents=LatentReading(scale=scale)))
    with pytest.raises(UserError, match="for 4 channels 1 or 4 are needed"):
        decoder_for(model_of(), str(folder / "vae"), "cpu", scale)


def test_samples_are_decoded_at_the_recorded_scale(folder: Path) -> None:
    network = diffusers.AutoencoderKL.from_pretrained(folder / "vae").eval()
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    scale = LatentScale((2.0, 4.0, 1.0, 0.5), (0.0, 1.0, 2.0, 3.0))
    decoder = decoder_for(model_of(), str(folder / "vae"), "cpu", scale)
    assert decoder is not None
    with torch.no_grad():
        latents = z / torch.tensor(scale.scale).view(-1, 1, 1) + torch.tensor(scale.shift).view(-1, 1, 1)
        torch.testing.assert_close(decoder(z), network.decode(latents).sample, atol=1e-5, rtol=1e-4)
    assert decoder.record()["latent_scale"] == [scale.scale, scale.shift]


@pytest.mark.parametrize(
    ("reading", "source", "text"),
    [
        (latent_reading(None, 2.0), "images", "a scale of latents is given"),
        (LatentReading(posterior="mean"), "images", "this model reads images"),
        (LatentReading(posterior="mean"), "latents", "mine gives latents without moments"),
    ],
)
def test_what_would_change_nothing_is_refused(reading: LatentReading, source: str, text: str) -> None:
    images = with_latents()
    if source == "latents":
        assert images.moments is not None
        images = replace(images, moments=None, latents=images.moments[:, :4])
    model = model_of(3, SIDE) if source == "images" else model_of()
    with pytest.raises(UserError, match=text):
        checked_input(model, images, Capture(latents=reading))


def test_data_and_vae_are_compared(encoder: VaeEncoder) -> None:
    fitting = with_latents(scale=encoder.scale)
    assert encode_images(fitting, encoder) is fitting
    with pytest.raises(UserError, match=r"data mine scales its latents by 5, this VAE by 0.7 after a shift of 0.25"):
        encode_images(with_latents(scale=OF_DATA), encoder)
    assert encode_images(with_latents(scale=OF_DATA), encoder, check_scale=False).latent_scale == OF_DATA
    small = replace(with_latents(), moments=np.ones((6, 8, 4, 4), np.float32))
    with pytest.raises(UserError, match="the latents of mine are 4x4x4, those of this VAE 4x8x8"):
        encode_images(small, encoder)


# --- before anything is computed


class Counted(Teacher):
    """A teacher whose tokens are grey levels, and that counts the images it sees."""

    name, width, digest, prefix_tokens = "counted", 1, "counted", 0

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.seen = nn.Parameter(torch.ones(1), requires_grad=False), 0

    def forward(self, images: Tensor) -> Tokens:
        self.seen += len(images)
        grey = nn.functional.adaptive_avg_pool2d(images.float(), 4).flatten(2).transpose(1, 2) * self.scale
        return Tokens(grey, grey[:, 0])


def model_of(channels: int = 4, side: int = 8, **more: Any) -> SiT:
    model = SiT(SiTConfig(**{**WIDTHS, "in_channels": channels, "input_size": side, "num_classes": 2, **more}))
    wake(model)
    return model.eval()


def plain(count: int = 6, side: int = SIDE) -> Images:
    return replace(with_latents(count), images=np.zeros((count, 3, side, side), np.uint8), moments=None)


@pytest.mark.parametrize(
    ("model", "source", "text"),
    [
        (model_of(), plain(),
         r"the images are 3x16x16 \(.*\); this model reads latents 4x8x8: add --vae NAME, or name data that holds"),
        (model_of(1), plain(), r"the images are 3x16x16 \(.*\); this model reads 1x8x8$"),
        (model_of(16), with_latents(), r"the latents are 4x8x8 \(.*\); this model reads 16x8x8: another VAE is needed"),
        (model_of(side=32), "encoded", r"the latents are 4x8x8 \(.*\); this model reads 4x32x32: add --resolution 64$"),
        (model_of(class_dropout_prob=0.0, num_classes=1), with_latents(),
         r"an image is of class 1; this model has labels 0\.\.0, and no null label"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_before_the_teacher_sees_an_image(
    model: SiT, source: Any, text: str, encoder: VaeEncoder
) -> None:
    images = EncodedImages(plain(), encoder) if source == "encoded" else source
    teacher = Counted()
    with pytest.raises(UserError, match=text):
        align(model, teacher, images, layers=(1,), timesteps=(0.1,))
    assert teacher.seen == 0


def moments_of(mean: float, deviation: float, spread: float) -> Images:
    rng = np.random.default_rng(0)
    means = mean + deviation * rng.standard_normal((16, 4, 8, 8))
    return replace(with_latents(16), moments=np.concatenate([means, np.full_like(means, spread)], 1).astype(np.float32))


@pytest.mark.parametrize(
    ("source", "scale", "text"),
    [
        (moments_of(0, 5.5, 0.1), 0.18, ""),
        (moments_of(0, 1, 0.1), 1.0, ""),
        (
            moments_of(0, 5.5, 0.1),
            1.0,
            "nothing scales them, so the scale is likely missing (--latent-scale, about 0.18)",
        ),
        (moments_of(0, 1, 0.1), 0.18, "they seem to be scaled already (--latent-scale 1)"),
        (moments_of(4, 1, 0.1), 1.0, "the shift is likely wrong"),
        (moments_of(0, 5.5, 0.1), 1.5, "the scale 1.5 is likely another VAE's"),
        (moments_of(0, 5.5, -6.0), 1.5, "they are latents or log-variances, not means and standard deviations"),
    ],
)
def test_latents_of_an_unusual_size_are_explained(
    source: Images, scale: float, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    capture = Capture(latents=LatentReading(scale=LatentScale((scale,))))
    with caplog.at_level(logging.WARNING):
        warn_of_scale(model_of(), source, capture)
    assert len(caplog.records) == bool(text)
    assert text in caplog.text


# --- every model, every measurement


def small(name: str) -> DiffusionModel | None:
    """A small network of a registered architecture that reads 4x8x8, None where it is no diffusion model."""
    architecture = MODELS.get(name)
    known = {field.name for field in fields(architecture.defaults)}
    wanted: dict[str, Any] = {**WIDTHS, "num_classes": 2, "depth": 2, "context_size": 16}
    tree = {key: value for key, value in wanted.items() if key in known}
    try:
        model = architecture.build(from_dict(architecture.defaults, tree))
    except (UserError, AssertionError):
        return None
    if not isinstance(model, DiffusionModel):
        return None
    wake(model)
    return model.eval()


@pytest.mark.parametrize("name", ["SiT", "SiT-REG", "SiT-ERW", "DiT", "LightningDiT", "MMDiT"])
def test_a_model_reads_encoded_images_as_it_reads_stored_moments(name: str, encoder: VaeEncoder) -> None:
    model = small(name)
    assert model is not None
    images = plain(6)
    rng = np.random.default_rng(1)
    images = replace(images, images=rng.integers(0, 256, images.images.shape, dtype=np.uint8))
    source: ImageSource = EncodedImages(images, encoder)
    if model.reads_captions:
        with pytest.raises(UserError, match="this model reads features of captions, which data mine lacks"):
            checked_input(model, source, Capture())
        model.null_context = torch.ones(5, 16)
    stored = replace(images, moments=source.fetch(range(6), ("moments",)).moments.numpy(), latent_scale=encoder.scale)  # type: ignore[union-attr]
    tokens = lambda pixels: pixels.float().mean((2, 3)).repeat(1, 256)[:, : model.class_token_width]  # noqa: E731
    capture = Capture(class_tokens=tokens if model.has_class_token else None, batch_size=4)
    for t in (0.0, 0.6):
        first, second = (hidden_features(model, each, layers=(1, 2), t=t, capture=capture) for each in (source, stored))
        assert all(np.array_equal(first[layer], second[layer]) for layer in (1, 2))
        assert np.isfinite(first[2]).all()
        assert np.ptp(first[2], axis=0).max() > 0
    checked_input(model, source, capture)


def test_a_probe_and_spatial_metrics_of_encoded_images(encoder: VaeEncoder, folder: Path) -> None:
    rng = np.random.default_rng(0)

    def part(count: int) -> Images:
        pixels = rng.integers(0, 128, (count, 3, SIDE, SIDE), dtype=np.uint8)
        pixels[::2] += 100  # the classes differ in brightness
        return replace(plain(count), images=pixels)

    splits = Splits(part(24), part(8), part(10))
    found = repa_eval.probe(model_of(), splits, layers=1, timesteps=0.0, vae=folder / "vae", posterior="mean")
    accuracy = {row.metric: row.value for row in found.rows}
    assert accuracy == {"probe_accuracy": 1.0, "knn_accuracy": 1.0}
    assert all(row.record["posterior"] == "mean" for row in found.rows if row.record)
    words = [*words_of(folder), "--metrics", "lds", "--layers", "1"]
    done = repa_eval_command(*words)
    assert done.exit_code == 0, done.stderr
    rows, protocols = rows_of(done.stdout)
    assert {row["metric"] for row in rows} == {"lds", "lds_teacher"}
    assert any(record.get("vae_hash") == encoder.digest for record in protocols.values())


def test_the_callers_own_autoencoder_is_left_as_it_was(folder: Path) -> None:
    network = diffusers.AutoencoderKL.from_pretrained(folder / "vae").train()
    given: dict[str, Any] = {"resolution": SIDE, "layers": 1, "timesteps": [0.2], "cache": False}
    checkpoint, photos = folder / "0400000.pt", str(folder / "photos")
    by_object = repa_eval.features(checkpoint, photos, vae=network, **given)
    by_name = repa_eval.features(checkpoint, photos, vae=str(folder / "vae"), **given)
    np.testing.assert_allclose(by_object, by_name, atol=1e-5)
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())


# --- memory, class tokens


def test_many_features_lie_on_the_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    given: dict[str, Any] = {"layers": (1, 2), "t": 0.3, "capture": Capture(batch_size=4)}
    model = model_of()
    held = hidden_features(model, with_latents(10), **given)
    monkeypatch.setattr(capturing, "IN_MEMORY", 100)
    mapped = hidden_features(model, with_latents(10), **given)
    assert all(isinstance(mapped[layer].base, np.memmap) for layer in (1, 2))
    assert all(np.array_equal(held[layer], mapped[layer]) for layer in (1, 2))
    assert not list(tmp_path.iterdir())


FIRST, SECOND = RecordedTeacher("a", "a.pth"), RecordedTeacher("b")


@pytest.mark.parametrize(
    ("recorded", "named", "weights", "expected"),
    [
        ((FIRST, SECOND), None, None, FIRST),
        ((FIRST, SECOND), None, "w", RecordedTeacher("a", "w")),
        ((FIRST, SECOND), "c,a", "w", RecordedTeacher("a", "w")),
        ((FIRST, SECOND), "c", "w", FIRST),  # the file is c's
        ((), "c,a", "w", RecordedTeacher("c", "w")),
    ],
)
def test_whose_class_token_a_model_reads(recorded: Any, named: Any, weights: Any, expected: RecordedTeacher) -> None:
    reads = SimpleNamespace(diffusion_model=SimpleNamespace(has_class_token=True), teachers=recorded, path="x")
    assert class_token_teacher(reads, named, weights) == expected
    other = SimpleNamespace(diffusion_model=SimpleNamespace(has_class_token=False), teachers=recorded, path="x")
    assert class_token_teacher(other, named, weights) is None


def test_the_protocol_names_the_class_tokens_teacher(encoder: VaeEncoder) -> None:
    model = small("SiT-REG")
    assert model is not None
    wide = Counted()
    wide.forward = (
        lambda images: Tokens(  # type: ignore[method-assign]
            images.float().flatten(2)[:, :, :16].transpose(1, 2), images.float().mean((2, 3)).repeat(1, 256)[:, :768]
        )
    )
    capture = Capture(class_tokens=TeacherClassTokens(wide))
    [row] = align(model, Counted(), with_latents(), layers=(1,), timesteps=(0.1,), metrics=("cka",), capture=capture)
    assert row.record is not None
    assert row.record["class_token_teacher_hash"] == "counted"


def test_samples_fetch_only_what_is_asked_for(images: ImageSource, encoder: VaeEncoder) -> None:
    counting = Counting(encoder)
    found = EncodedImages(images, counting).fetch([1], ("labels",))
    assert isinstance(found, Samples)
    assert found.moments is None
    assert found.images is None
    assert counting.seen == 0
