"""`repa-eval sweep` of runs that this project did not train: the official trainers' folders, models of latents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from helpers import files_of, run, tiny, torchrun, wake
from latent_files import photographs
from official_files import REPA, trainer_file
from repa_eval import results
from repa_eval.cli import main as repa_eval
from repa_eval.commands.shared.verification import faults_of
from repa_eval.models.sit import SiT, SiTConfig
from repa_eval.monitors.shared import foreign

TEACHER = """
import torch
from repa_eval.interfaces.teacher import Teacher, Tokens
from repa_eval.plugins import teacher

class Colours(Teacher):
    def __init__(self, name):
        super().__init__()
        self.name, self.width, self.digest = name, 3, "colours"
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, images):
        patches = torch.nn.functional.avg_pool2d(images.float() / 255, 4).flatten(2).transpose(1, 2)
        return Tokens(patches=patches * self.scale, cls=patches.mean(1))

@teacher("colours")
def colours(name, weights):
    return Colours(name)
"""
IMAGES = 24


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs in class folders, a tiny VAE, a teacher, and an official trainer's folder with two checkpoints."""
    import diffusers

    place = tmp_path_factory.mktemp("official")
    for index, pixels in enumerate(photographs(IMAGES, 16)):
        file = place / "data" / "ab"[index % 2] / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    torch.manual_seed(0)
    diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, scaling_factor=1.0,
    ).save_pretrained(place / "vae")  # fmt: skip
    (place / "teacher.py").write_text(TEACHER)
    for step, seed in ((100, 1), (200, 2)):
        folder = place / "exps" / "linear-dinov2-b-enc1" / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        trainer_file(folder / f"{step:07d}.pt", network(seed).state_dict(), steps=step, **REPA)
    return place


def network(seed: int) -> SiT:
    sizes = {"depth": 2, "hidden_size": 32, "num_heads": 2, "patch_size": 2, "projector_dim": 16}
    built = SiT(SiTConfig(**sizes, in_channels=4, input_size=8, num_classes=10, z_dims=(3,)))
    wake(built, seed=seed)
    return built


def words(artefacts: Path, out: Path, *more: str) -> list[str]:
    run = artefacts / "exps" / "linear-dinov2-b-enc1"
    given = ["sweep", str(run), "--out", str(out), "--data", str(artefacts / "data"), "--vae", str(artefacts / "vae")]
    given += ["--plugin", str(artefacts / "teacher.py"), "--teacher", "colours", "--set", "num_heads=2"]
    given += ["--reference", str(artefacts / "data"), "--extractor", "pixel_pca", "--num-samples", "12"]
    given += ["--num-steps", "2", "--mode", "sde", "--cfg-scale", "1.5", "--guidance-high", "0.7", "--layers", "1,2"]
    return [*given, "--timesteps", "0.1,0.5", "--batch-size", "8", "--device", "cpu", "--quiet", *more]


def sweep(artefacts: Path, out: Path, *more: str) -> Result:
    return CliRunner().invoke(repa_eval, words(artefacts, out, *more))


def rows_of(done: Result) -> list[dict[str, Any]]:
    assert done.exit_code == 0, done.output
    found: list[dict[str, Any]] = json.loads(done.stdout)["rows"]
    return found


def fails(done: Result, code: int, text: str) -> None:
    assert done.exit_code == code, done.output
    assert done.stderr.count("\n") == 1, done.stderr
    assert text in done.stderr


def test_an_official_run_is_measured_once(artefacts: Path, tmp_path: Path) -> None:
    before = files_of(artefacts / "exps")
    rows = rows_of(sweep(artefacts, tmp_path / "out", "--json"))
    folder = tmp_path / "out" / "linear-dinov2-b-enc1"
    steps = {
        metric: {row["step"] for row in rows if row["metric"] == metric} for metric in {row["metric"] for row in rows}
    }
    assert {"cknna", "cka", "mutual_knn", "probe_accuracy", "knn_accuracy", "fd_pixel_pca"} <= set(steps)
    assert all(found in ({100, 200}, {None}) for found in steps.values())
    assert {(row["run"], row["system"], row["weights"]) for row in rows if row["step"]} == {
        ("linear-dinov2-b-enc1", "REPA", "ema")
    }
    cells = [(row["step"], row["layer"], row["timestep"]) for row in rows if row["metric"] == "cknna"]
    assert sorted(cells) == [(step, layer, t) for step in (100, 200) for layer in (1, 2) for t in (0.1, 0.5)]
    records = results.read_protocols(folder)
    [quality] = [record for record in records.values() if record["kind"] == "sample quality"]
    expected = {"sampler_mode": "sde", "cfg_scale": 1.5, "guidance_interval": [0.0, 0.7], "num_samples": 12}
    assert quality | expected == quality
    assert quality["vae_hash"]
    hidden = [record for record in records.values() if record["kind"] != "sample quality" and "label" in record]
    assert hidden
    assert all((record["model_input"], record["label"]) == ("latents", "null") for record in hidden)
    assert files_of(artefacts / "exps") == before  # nothing is written into the run of somebody else
    media = sorted(path.name for path in (folder / "media").glob("*.png"))
    assert media == [f"{kind}-0000{step}.png" for kind in ("pca", "samples") for step in (100, 200)]
    assert faults_of(folder) == ({"checkpoints": 0, "rows": len(rows), "media": 6}, [])
    facts = json.loads((folder / "run.json").read_text())
    assert facts["description"] == "SiT, REPA, of another trainer"
    assert facts["checkpoints"] == str(artefacts / "exps" / "linear-dinov2-b-enc1")
    whole = files_of(folder)
    assert rows_of(sweep(artefacts, tmp_path / "out", "--json")) == []
    assert files_of(folder) == whole
    table = folder / results.TABLE
    lines = table.read_text().splitlines()
    table.write_text("".join(f"{line}\n" for line in lines[:5]))  # as after a kill
    sweep(artefacts, tmp_path / "out")
    assert sorted(table.read_text().splitlines()) == sorted(lines)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"--data": None}, "does not say what it was trained on: name the images with --data"),
        ({"--vae": None}, "this model reads latents 4x8x8: add --vae NAME"),
        ({"--vae": "none"}, "--vae none is no folder here"),
        ({"--teacher": None}, "dinov2"),
        ({"--teacher": "digits-vit"}, "teacher digits-vit reads 1x8x8 images, not 3x16x16"),
        ({"--reference": None}, "name them with --reference, or leave samples out with --num-samples 0"),
        ({"--reference": "none.npz"}, "reference 'none.npz' is not a folder, .zip, .npz or data set"),
        ({"--extractor": "digits"}, "extractor digits reads 1x8x8 images, not 3x16x16"),
        ({"--extractor": "inceptoin"}, "unknown extractor 'inceptoin'; did you mean 'inception'?"),
        ({"--layers": "3"}, "layer 3: this model has blocks 1..2"),
        ({"--num-samples": "1"}, "--num-samples 1: a distribution needs 2 or more"),
        ({"--out": None}, "is no run of repa-train: add --out FOLDER for its rows"),
        ({"--set": "num_heads=3"}, "num_heads"),
    ],
)
def test_everything_is_checked_before_the_first_checkpoint(
    artefacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, str | None], text: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(foreign, "draw", None)  # nothing is sampled
    given = words(artefacts, tmp_path / "out")
    for option, value in change.items():
        place = given.index(option)
        given[place : place + 2] = [] if value is None else [option, value]
    done = CliRunner().invoke(repa_eval, given)
    assert done.exit_code in (1, 2), done.output
    assert done.stderr.count("\n") == 1, done.stderr
    assert text in done.stderr
    assert not list((tmp_path / "out").rglob("*.jsonl"))


def test_large_samples_go_on_where_they_were_interrupted(
    artefacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = ["--timesteps", "0.1", "--layers", "1"]
    rows_of(sweep(artefacts, tmp_path / "memory", *only, "--json"))
    monkeypatch.setattr(foreign, "IN_MEMORY", 0)
    original, made = foreign.fill_samples, list[int]()

    def stopped(*given: Any, **more: Any) -> None:
        def count(images: int) -> None:
            made.append(images)
            if len(made) == 1:
                raise KeyboardInterrupt

        original(*given, **more, progress=count)

    monkeypatch.setattr(foreign, "fill_samples", stopped)
    assert sweep(artefacts, tmp_path / "disk", *only).exit_code == 130
    assert made == [8]
    rows_of(sweep(artefacts, tmp_path / "disk", *only, "--json", "--keep-samples", "1"))
    assert made == [8, 4, 8, 4]  # what was made of the first checkpoint stayed
    assert table(tmp_path / "memory") == table(tmp_path / "disk")
    samples = tmp_path / "disk" / "linear-dinov2-b-enc1" / "samples"
    assert sorted(file.name for file in samples.iterdir()) == ["0000200.npz", "0000200.npz.json"]
    assert np.load(samples / "0000200.npz")["arr_0"].shape == (12, 16, 16, 3)


def table(out: Path) -> list[str]:
    return sorted((out / "linear-dinov2-b-enc1" / results.TABLE).read_text().splitlines())


def test_several_runs_and_files_of_other_names(artefacts: Path, tmp_path: Path) -> None:
    state = network(3).state_dict()
    first, second = tmp_path / "first", tmp_path / "second" / "checkpoints"
    for folder in (first, second):
        folder.mkdir(parents=True)
    torch.save({"ema": state, "args": REPA}, first / "ckpt-300.pt")
    torch.save({"ema": state, "args": REPA}, second / "0000400.pt")
    torch.save({"ema": state, "args": REPA}, second / "last.pt")
    (second / "0000500.pt").write_bytes(b"half a file")
    given = words(artefacts, tmp_path / "out", "--num-samples", "0", "--json")
    given[1:2] = [str(first), str(tmp_path / "second")]
    done = CliRunner().invoke(repa_eval, given)
    assert done.exit_code == 1
    assert {(row["run"], row["step"]) for row in json.loads(done.stdout)["rows"] if row["step"]} == {
        ("first", 300), ("second", 400),
    }  # fmt: skip
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert "last.pt: neither the file nor its name says its step; call it 0050000.pt" in "".join(lines[:2])
    assert "0000500.pt, last.pt could not be measured" in lines[2]
    (tmp_path / "other").mkdir()
    (tmp_path / "second").rename(tmp_path / "other" / "first")
    given[2] = str(tmp_path / "other" / "first")
    fails(CliRunner().invoke(repa_eval, given), 2, "two runs are called first: sweep them into different --out")


def test_two_processes_give_the_rows_of_one(artefacts: Path, tmp_path: Path) -> None:
    only = ["--timesteps", "0.1", "--layers", "1"]
    assert sweep(artefacts, tmp_path / "one", *only).exit_code == 0
    torchrun(2, *words(artefacts, tmp_path / "two", *only))
    assert table(tmp_path / "one") == table(tmp_path / "two")


def test_watching_a_foreign_run_goes_on_until_it_is_interrupted(
    artefacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = tmp_path / "exps" / "theirs"
    (theirs / "checkpoints").mkdir(parents=True)
    looks: list[int] = []

    def sleep(seconds: float) -> None:
        looks.append(len(list((theirs / "checkpoints").iterdir())))
        if len(looks) == 1:
            trainer_file(theirs / "checkpoints" / "0000100.pt", network(1).state_dict(), steps=100, **REPA)
        if len(looks) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("repa_eval.commands.sweep.time.sleep", sleep)
    given = words(artefacts, tmp_path / "out", "--watch", "--num-samples", "0")
    given[1] = str(theirs)
    given.remove("--quiet")
    done = CliRunner().invoke(repa_eval, given)
    assert done.exit_code == 130
    assert "no run of repa-train, so its end is not known: stop with Ctrl-C" in done.stderr
    assert {row.step for row in results.read(tmp_path / "out" / "theirs") if row.step} == {100}


def test_an_own_run_takes_the_same_path_with_options(tmp_path: Path) -> None:
    run(tiny("repa", max_steps=2, checkpoint_every=2), tmp_path / "mine")
    given = ["sweep", str(tmp_path / "mine"), "--num-samples", "8", "--num-steps", "2", "--reference", "digits"]
    given += ["--extractor", "digits", "--num-images", "16", "--timesteps", "0.1", "--layers", "1", "--json", "--quiet"]
    rows = rows_of(CliRunner().invoke(repa_eval, [*given, "--device", "cpu"]))
    assert {(row["run"], row["method"]) for row in rows if row["step"]} == {("mine", "repa")}
    assert {row["n"] for row in rows if row["metric"] == "fd_digits"} == {8}
    assert {row["n"] for row in rows if row["metric"] == "cknna"} == {16}
    assert "status" in json.loads((tmp_path / "mine" / "run.json").read_text())
