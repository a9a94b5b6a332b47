"""`repa-eval sample`: the same bytes however it is cut, shared or continued; every kind of model; one-line errors."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import nn

from helpers import environment, files_of, torchrun, wake
from repa_eval.cli import main
from repa_eval.data.readers.image_files import open_images
from repa_eval.models.dit import DiT, DiTConfig
from repa_eval.models.lightning_dit import LightningDiT, LightningDiTConfig
from repa_eval.models.sit import SiT, SiTConfig
from repa_eval.models.sit_reg import SiTCls, SiTClsConfig
from repa_eval.runtime.distributed import Share
from repa_eval.sampling import generate as generating
from repa_eval.sampling import sample_files as samples
from repa_eval.sampling.sample_files import SampleArray, SampleFolder

WIDTHS: dict[str, Any] = {"input_size": 8, "hidden_size": 32, "depth": 2, "num_heads": 2}
FAST = ("--num-steps", "3", "--device", "cpu", "--quiet", "--set", "num_heads=2")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small models of every kind as bare weights, as the published files are; a memory bank; a VAE."""
    folder = tmp_path_factory.mktemp("checkpoints")
    models: dict[str, nn.Module] = {
        "grey": SiT(SiTConfig(**WIDTHS, in_channels=1, num_classes=5)),
        "latent": SiT(SiTConfig(**WIDTHS, num_classes=5)),
        "sit": SiT(SiTConfig(**WIDTHS, num_classes=5, learn_sigma=True)),
        "dit": DiT(DiTConfig(**WIDTHS, num_classes=5)),
        "reg": SiTCls(SiTClsConfig(**WIDTHS, in_channels=3, num_classes=5, z_dims=(6,), projector_dim=8)),
        "gmem": LightningDiT(LightningDiTConfig(**WIDTHS, in_channels=3, patch_size=2, condition_size=24)),
    }
    for name, model in models.items():
        wake(model, scale=0.1)
        torch.save(model.state_dict(), folder / f"{name}.pt")
    bank = torch.randn(9, 24, generator=torch.Generator().manual_seed(0))
    torch.save(bank, folder / "bank.pth")
    np.save(folder / "bank.npy", bank.numpy())
    torch.save({"C": bank}, folder / "compressed.pth")
    (folder / "broken.pth").write_text("no tensor")
    return folder


@pytest.fixture
def here(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, the checkpoints at ck/."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny AutoencoderKL from 4 channels to images of twice the side."""
    import diffusers

    folder = tmp_path_factory.mktemp("vae")
    torch.manual_seed(0)
    autoencoder = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, scaling_factor=0.5, shift_factor=0.25,
    )  # fmt: skip
    autoencoder.save_pretrained(folder)
    return folder


def sample(*words: object) -> Result:
    return CliRunner().invoke(main, ["sample", *map(str, words)])


def good(*words: object) -> Result:
    done = sample(*words)
    assert done.exit_code == 0, done.stderr
    return done


def fails(done: Result, code: int, text: str) -> None:
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr or repr(done.exception)
    assert lines[0].startswith("error: ")
    assert text in lines[0]
    assert done.exit_code == code


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- the same bytes


@pytest.mark.parametrize("name", ["out", pytest.param("out.npz", marks=pytest.mark.slow)])
def test_two_processes_write_the_bytes_of_one(name: str, checkpoints: Path, here: Path) -> None:
    # torchrun would take --num for an option of its own
    words = ("--ckpt", checkpoints / "grey.pt", "--num-fid-samples", 13, "--batch-size", 5, "--mode", "sde", *FAST)
    good(*words, "--out", f"one-{name}")
    said = torchrun(2, "sample", *map(str, words), "--out", f"two-{name}", cwd=here)
    assert len(said.splitlines()) == 1  # one process speaks
    if name == "out":
        assert files_of(here / "one-out") == files_of(here / "two-out")
        assert visible(here) == ["one-out", "two-out"]
    else:
        assert Path("one-out.npz").read_bytes() == Path("two-out.npz").read_bytes()
        assert visible(here) == [f"{which}-out.npz{end}" for which in ("one", "two") for end in ("", ".json")]


def test_another_batch_size_moves_hardly_a_pixel(checkpoints: Path, here: Path) -> None:
    words = ("--ckpt", checkpoints / "grey.pt", "--num", 170, "--mode", "sde", *FAST)
    good(*words, "--batch-size", 5, "--out", "a.npz")
    good(*words, "--batch-size", 13, "--out", "b.npz")
    apart = np.abs(np.load("a.npz")["arr_0"].astype(int) - np.load("b.npz")["arr_0"])
    assert apart.max() <= 1
    assert (apart > 0).mean() <= 1e-4


def test_processes_share_whole_batches() -> None:
    missing = [0, 1, 3, 4, 7, 9, 12]
    parts = [Share(rank, 3).of(missing, 2) for rank in range(3)]
    assert parts == [[0, 1, 7], [3, 9], [4, 12]]
    assert sorted(index for part in parts for index in part) == missing
    assert Share().of(missing, 5) == missing


class StoppedError(Exception):
    """What ends a process in the midst of its work."""


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the next run die after some batches."""

    def arm(batches: int) -> None:
        real, count = generating.integrate, iter(range(batches))

        def integrate(*arguments: Any) -> Any:
            if next(count, None) is None:
                monkeypatch.setattr(generating, "integrate", real)
                raise StoppedError
            return real(*arguments)

        monkeypatch.setattr(generating, "integrate", integrate)

    return arm


@pytest.mark.parametrize("name", ["out", "out.npz"])
def test_interrupted_and_continued_writes_the_same_bytes(
    name: str, checkpoints: Path, here: Path, stopping: Callable[[int], None]
) -> None:
    words = ("--ckpt", checkpoints / "grey.pt", "--num", 13, "--batch-size", 5, *FAST, "--out")
    good(*words, f"whole-{name}")
    stopping(2)
    assert "StoppedError" in sample(*words, name).stderr
    assert not Path("out.npz").exists()
    made: list[int] = []
    real = SampleFolder.add if name == "out" else SampleArray.add
    target: Any = SampleFolder if name == "out" else SampleArray

    def add(self: Any, indices: Any, images: Any) -> None:
        made.extend(indices)
        real(self, indices, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, "add", add)
        good(*words, name)
    assert made == [10, 11, 12]
    if name == "out":
        assert files_of(here / "out") == files_of(here / "whole-out")
    else:
        assert Path(name).read_bytes() == Path(f"whole-{name}").read_bytes()
        assert not [entry for entry in visible(here) if entry.startswith(".")]


def test_more_of_the_same_samples(checkpoints: Path, here: Path) -> None:
    words = ("--ckpt", checkpoints / "grey.pt", "--batch-size", 5, *FAST, "--out")
    good(*words, "grown", "--num", 7)
    good(*words, "grown", "--num", 13)
    good(*words, "whole", "--num", 13)
    assert files_of(here / "grown") == files_of(here / "whole")
    good(*words, "a.npz", "--num", 7)
    before = Path("a.npz").read_bytes()
    good(*words, "a.npz", "--num", 7)
    fails(sample(*words, "a.npz", "--num", 13), 2, "a.npz is finished and holds 7 samples, not 13")
    assert Path("a.npz").read_bytes() == before


# --- how they lie on the disk


def test_flat_folders(checkpoints: Path, here: Path) -> None:
    words = ("--ckpt", checkpoints / "grey.pt", "--num", 4, "--batch-size", 2, *FAST)
    good(*words, "--out", "deep")
    good(*words, "--out", "flat", "--flat")
    assert visible(here / "flat") == [*(f"{index:06d}.png" for index in range(4)), "samples.json"]
    assert (here / "flat" / "000003.png").read_bytes() == (here / "deep" / "00000" / "000003.png").read_bytes()
    assert (here / "flat" / "samples.json").read_bytes() == (here / "deep" / "samples.json").read_bytes()
    fails(sample(*words, "--out", "flat"), 2, "flat contains samples in the other layout; add --flat or choose another")
    fails(sample(*words, "--out", "deep", "--flat"), 2, "deep contains samples in the other layout; leave out --flat")
    fails(sample(*words, "--out", "a.npz", "--flat"), 2, "--flat is a layout of folders; a.npz is an npz")
    assert not list(here.glob("*.npz*"))


def test_an_npz_is_stored_and_reads_like_numpys(checkpoints: Path, here: Path) -> None:
    good("--ckpt", checkpoints / "grey.pt", "--num", 7, "--batch-size", 3, *FAST, "--out", "a.npz", "--labels", "4,2")
    with zipfile.ZipFile("a.npz") as archive:
        assert [(info.filename, info.compress_type) for info in archive.infolist()] == [
            ("arr_0.npy", zipfile.ZIP_STORED), ("arr_1.npy", zipfile.ZIP_STORED),
        ]  # fmt: skip
    held = np.load("a.npz")
    assert held["arr_0"].shape == (7, 8, 8, 1)
    assert held["arr_0"].dtype == np.uint8
    assert held["arr_1"].tolist() == [4, 2, 4, 2, 4, 2, 4]
    samples = open_images("a.npz").fetch(range(7))
    images, labels = samples.pixels, samples.labels
    np.savez("b.npz", arr_0=images.permute(0, 2, 3, 1).numpy(), arr_1=labels.numpy())
    assert Path("a.npz").read_bytes() == Path("b.npz").read_bytes()


def test_only_one_batch_is_in_memory(tmp_path: Path) -> None:
    target = SampleArray(tmp_path / "a.npz", {"seed": 0})
    for first in (6, 0, 3):  # in any order, as processes finish
        target.add(range(first, first + 3), torch.full((3, 1, 2, 2), first, dtype=torch.uint8))
    assert target.missing(11) == [9, 10]
    assert SampleArray(tmp_path / "a.npz", {"seed": 0}).missing(9) == []
    target.finish(np.arange(9))
    assert np.load(tmp_path / "a.npz")["arr_0"][:, 0, 0, 0].tolist() == [0] * 3 + [3] * 3 + [6] * 3
    assert visible(tmp_path) == ["a.npz", "a.npz.json"]


def test_npz_files_of_others_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"a\.npz exists and contains no samples of repa-eval; choose another --out"):
        SampleArray(tmp_path / "a.npz", {})
    SampleArray(tmp_path / "b.npz", {"seed": 0})
    with pytest.raises(ValueError, match=r"b\.npz\.partial contains samples made with different settings \(seed\)"):
        SampleArray(tmp_path / "b.npz", {"seed": 1})


@pytest.mark.parametrize("name", ["out", "out.npz"])
def test_a_full_disk_is_one_line_and_keeps_what_was_made(
    name: str, checkpoints: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--ckpt", checkpoints / "grey.pt", "--num", 13, "--batch-size", 5, *FAST, "--out")
    good(*words, f"whole-{name}")
    space = 7

    def full(real: Callable[..., Any]) -> Callable[..., Any]:
        def write(*arguments: Any, **options: Any) -> Any:
            nonlocal space
            space -= 1
            if space < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments, **options)

        return write

    with monkeypatch.context() as patch:
        where: Any = samples if name == "out" else os
        what = "write_atomic" if name == "out" else "pwrite"
        patch.setattr(where, what, full(getattr(where, what)))
        fails(
            sample(*words, name),
            1,
            f"{name}: no space left on the disk; what was made so far is kept, the same command continues",
        )
    assert not list(here.rglob("*.tmp"))
    if name == "out":
        kept, whole = files_of(here / name), files_of(here / f"whole-{name}")
        assert len(kept) == 7
        assert kept.items() <= whole.items()
    good(*words, name)
    if name == "out":
        assert files_of(here / name) == whole
    else:
        assert Path(name).read_bytes() == Path(f"whole-{name}").read_bytes()


def test_a_disk_that_fills_up_while_the_npz_is_put_together(
    checkpoints: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--ckpt", checkpoints / "grey.pt", "--num", 5, "--batch-size", 5, *FAST, "--out", "a.npz")

    def full(*_arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(samples, "_copy", full)
        fails(sample(*words), 1, "a.npz: no space left on the disk")
    assert visible(here) == [".a.npz.partial"]
    good(*words)
    assert visible(here) == ["a.npz", "a.npz.json"]


def test_other_failures_of_the_disk_are_not_called_full(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), samples.disk_space(tmp_path):
        raise PermissionError(errno.EACCES, "no")


# --- every kind of model


@pytest.mark.parametrize(
    ("name", "words", "expected"),
    [
        ("grey", "", {"solver": "euler", "uint8": "floor"}),
        ("reg", "--mode sde --cfg-scale 2 --cls-cfg-scale 1.5", {"sampler": "joint", "cls_cfg_scale": 1.5}),
        ("gmem", "--bank bank.pth --mode sde --sampling-method Heun --diffusion-form linear --last-step-size 0.004",
         {"sampler": "transport", "solver": "heun", "diffusion_form": "linear", "nfe": 5, "labels": "snippets"}),
        ("gmem", "--bank bank.npy --sampling-method euler --timestep-shift 0.3",
         {"timestep_shift": 0.3, "guided_channels": "all", "bank": "bank.npy", "uint8": "round"}),
        ("sit", "--set system=SiT --sampling-method heun2 --cfg-scale 1.5 --vae VAE",
         {"sampler": "transport", "guided_channels": 3, "latent_scale": [0.5, 0.25], "uint8": "round"}),
        ("dit", "--set system=DiT --cfg-scale 1.5 --vae VAE", {"sampler": "ddpm", "sampler_mode": "ddpm", "nfe": 3}),
        ("sit", "--set system=SiT --sampler repa --heun --vae VAE --path-type cosine",
         {"solver": "heun", "path_type": "cosine", "uint8": "floor"}),
        ("latent", "--vae VAE --uint8 round", {"solver": "euler", "uint8": "round"}),
    ],
)  # fmt: skip
def test_every_kind_of_model(
    name: str, words: str, expected: dict[str, Any], checkpoints: Path, here: Path, request: pytest.FixtureRequest
) -> None:
    given = words.replace("bank.", f"{checkpoints}/bank.").split()
    if "VAE" in given:
        given[given.index("VAE")] = str(request.getfixturevalue("vae"))
    done = good(
        "--ckpt", checkpoints / f"{name}.pt", "--num", 3, "--batch-size", 2, *FAST, *given, "--out", "a.npz", "--json"
    )
    answer = json.loads(done.stdout)
    assert answer["record"] | expected == answer["record"]
    assert answer["record"] == json.loads(Path("a.npz.json").read_text())
    images = np.load("a.npz")["arr_0"]
    assert images.shape == (3, *((16, 16, 3) if "VAE" in words else (8, 8, 1 if name == "grey" else 3)))
    assert len(np.unique(images.reshape(3, -1), axis=0)) == 3


def test_the_vae_decodes_scaled_and_shifted_latents(vae: Path, checkpoints: Path, here: Path) -> None:
    import diffusers

    from repa_eval import checkpoints as opening
    from repa_eval.sampling.generate import SamplerSettings, generate

    good("--ckpt", checkpoints / "latent.pt", "--num", 2, "--batch-size", 2, *FAST, "--vae", vae, "--out", "out")
    model = opening.load(checkpoints / "latent.pt", overrides={"num_heads": 2}).model
    kept: list[torch.Tensor] = []
    settings = SamplerSettings(num_steps=3)
    list(generate(model, range(2), settings, batch_size=2, decode=lambda z: kept.append(z) or z[:, :3]))  # type: ignore[func-returns-value]
    autoencoder = diffusers.AutoencoderKL.from_pretrained(vae)
    with torch.no_grad():
        images = autoencoder.decode((kept[0] / 0.5 + 0.25).float()).sample
    wanted = (255 * (images.double() + 1) / 2).clamp(0, 255).to(torch.uint8)
    made = [np.asarray(Image.open(f"out/00000/00000{index}.png")) for index in range(2)]
    assert np.abs(np.stack(made).astype(int) - wanted.permute(0, 2, 3, 1).numpy()).max() <= 1


def test_the_default_scale_is_stable_diffusions(vae: Path, tmp_path: Path) -> None:
    from repa_eval.interfaces.image_source import LatentScale
    from repa_eval.sampling.vae import decoder_for

    config = json.loads((vae / "config.json").read_text())
    for key in ("scaling_factor", "shift_factor"):
        config.pop(key)
    for file in vae.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config))
    decoder = decoder_for(SiT(SiTConfig(**WIDTHS)), str(tmp_path), "cpu")
    assert decoder is not None
    assert decoder.scale == LatentScale((0.18215,), (0.0,))


# --- one line


@pytest.mark.parametrize(
    ("name", "words", "code", "text"),
    [
        ("latent", "", 2, "this model makes latents of 4 channels: add --vae stabilityai/sd-vae-ft-ema, or --vae"),
        ("latent", "--vae nobody/nothing", 1, "--vae nobody/nothing is no folder here and could not be fetched"),
        ("latent", "--vae .", 2, "--vae .: the folder contains no config.json of an autoencoder"),
        ("grey", "--vae VAE", 2, "decodes 4 channels; this model makes 1"),
        ("grey", "--labels 3,5", 2, "label 5: this model has labels 0..4"),
        ("grey", "--labels=-1", 2, "label -1: this model has labels 0..4"),
        ("grey", "--labels three", 2, "--labels 'three': expected numbers joined by commas"),
        ("grey", "--labels 3 --balanced", 2, "balanced labels or given labels: choose one"),
        ("grey", "--cls-cfg-scale 2", 2, "--cls-cfg-scale does not apply to the sampler repa (it belongs to joint)"),
        ("grey", "--diffusion-form sigma", 2, "--diffusion-form does not apply to the sampler repa"),
        ("grey", "--sampler joint", 2, "the sampler joint does not fit this model; choose repa, transport"),
        ("grey", "--sampler transport --heun", 2, "--heun does not apply to the sampler transport"),
        ("grey", "--sampler transport --mode sde --atol 0.3", 2, "--atol does not apply to --mode sde"),
        ("grey", "--sampler transport --last-step Mean", 2, "--last-step does not apply to --mode ode"),
        ("grey", "--sampler transport --sampling-method rk45", 2, "with ode choose dopri5, euler, midpoint, heun2"),
        ("grey", "--bank bank.pth", 2, "this model is conditioned on labels: a memory bank (--bank) does not apply"),
        ("gmem", "", 2, "this model draws from a memory bank: name it with --bank FILE"),
        ("gmem", "--bank bank.pth --balanced", 2, "--balanced: this model has no classes"),
        ("gmem", "--bank bank.pth --labels 1", 2, "label 1: this model has no labels"),
        ("gmem", "--bank nothing.pth", 2, "nothing.pth does not exist"),
        ("gmem", "--bank broken.pth", 1, "broken.pth is not a memory bank (or needs code"),
        ("gmem", "--bank compressed.pth", 2, "compressed.pth holds dict, not one tensor (N, D)"),
        ("dit", "--set system=DiT --mode sde", 2, "--mode does not apply to the sampler ddpm"),
        ("dit", "--set system=DiT --guidance-high 0.7", 2, "--guidance-high does not apply to the sampler ddpm"),
        ("dit", "--set system=DiT --num-steps 1", 2, "num_steps 1: the sampler ddpm needs at least 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_sampled_is_one_line(
    name: str, words: str, code: int, text: str, checkpoints: Path, here: Path, request: pytest.FixtureRequest
) -> None:
    given = [word if not word.endswith(".pth") else str(checkpoints / word) for word in words.split()]
    if "VAE" in given:
        given[given.index("VAE")] = str(request.getfixturevalue("vae"))
    fails(sample("--ckpt", checkpoints / f"{name}.pt", "--num", 2, *FAST, *given, "--out", "made"), code, text)
    assert not visible(here)


def test_help_of_sample_does_not_import_torch() -> None:
    code = "import sys; from repa_eval.cli import main\ntry: main(['sample', '--help'])\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--timestep-shift" in done.stdout
