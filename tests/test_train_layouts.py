"""Every system trains on the layout that its own trainer reads: step by step, stopped and resumed, from its recipe."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import layout_files
import numpy as np
import pytest
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer

from golden_runners import repa
from helpers import CPU, files_of, run, steps_of
from latent_files import official_folder, photographs
from official_files import GOLDEN
from repa_eval import checkpoints, results
from repa_eval.errors import UserError
from repa_eval.interfaces.image_source import ImageSource, Samples
from repa_eval.interfaces.images import load_data
from repa_eval.interfaces.teacher import TEACHERS, teacher
from repa_eval.runtime import seeding
from repa_eval.teachers.shared.preprocessing import WholeImage
from repa_eval.teachers.shared.timm_teacher import VisionTeacher
from repa_eval.train import batches, loop, state
from repa_eval.train.callbacks import Callback
from repa_eval.train.methods.repa import Repa
from repa_eval.train.recipe import Recipe, read_recipe, resolve

TINY = {"depth": 2, "hidden_size": 32, "num_heads": 2, "projector_dim": 32, "encoder_depth": 1}
QUICK = {"batch_size": 4, "max_steps": 4, "checkpoint_every": 2, "log_every": 1, "num_workers": 0,
         "mixed_precision": "no", "learning_rate": 1e-3, "ema_decay": 0.9}  # fmt: skip
OF_IMAGES = {"input_size": 4, "num_classes": 3, "enc_type": "tiny-vit"}
OF_SHARDS = {"input_size": 2, "in_channels": 4, "patch_size": 1}


@pytest.fixture(scope="module", autouse=True)
def tiny_teacher() -> Iterator[None]:
    """A plain vision transformer of random weights that reads 16 x 16 pixels as 2 x 2 patches."""
    TEACHERS.names()
    before = dict(TEACHERS._objects), dict(TEACHERS._origins)

    @teacher("tiny-vit")
    def build(name: str, _weights: Path | None) -> VisionTeacher:
        """Tiny."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = VisionTransformer(
                img_size=16, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=0, global_pool=""
            )
        return VisionTeacher(name, network, WholeImage(mean=(0.5,) * 3, std=(0.5,) * 3, size=(16, 16), mode="bicubic"))

    yield
    TEACHERS._objects, TEACHERS._origins = before


def class_folders(path: Path) -> Path:
    for index, pixels in enumerate(photographs(8, 16)):
        place = path / f"class-{index % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{index}.png")
    return path


def coco(path: Path) -> Path:
    layout_files.coco(path)
    (path / "val").rename(path / "train")
    return path


def official(path: Path) -> Path:
    return official_folder(path, count=8)


# system -> (recipe, layout of its own trainer, what is changed so that a step takes milliseconds)
SYSTEMS: dict[str, tuple[str, Callable[[Path], Path], dict[str, Any]]] = {
    "SiT": ("imagenet/sit-vanilla", layout_files.lightning, {**OF_SHARDS, "num_classes": 6, "encoder_depth": None}),
    "REPA": ("imagenet/repa", official, OF_IMAGES),
    "HASTE": (
        "imagenet/haste-sit-b-2",
        official,
        {**OF_IMAGES, "student_layers": [1, 2], "teacher_layers": [1, 2], "early_stop_point": 3},
    ),
    "REG": ("imagenet/reg", official, OF_IMAGES),
    "U-REPA": (
        "imagenet/u-repa-sit-down-b-2",
        official,
        {**OF_IMAGES, "depth": None, "stages": [1, 1, 1], "encoder_depth": 2},
    ),
    "ERW": (
        "imagenet/erw",
        layout_files.erw,
        {**OF_SHARDS, "num_classes": 6, "l2r_depth": 1, "stage1_steps": 2},
    ),
    "GMem": ("imagenet/gmem", layout_files.gmem, {**OF_SHARDS, "bank_form": "full"}),
    "RePaViT": (
        "imagenet/repavit",
        class_folders,
        {"enc_type": "tiny-vit", "calibration_images": 8, "depth": None, "hidden_size": None, "num_heads": None,
         "projector_dim": None, "encoder_depth": None, "warmup_steps": 0, "schedule": "constant"},
    ),
    "SD3": (
        "digits-captions-base",
        coco,
        {**OF_SHARDS, "model": "MMDiT-digits", "word_noise": 0, "warmup_steps": 0, "encoder_depth": None,
         "projector_dim": None},
    ),
}  # fmt: skip


def recipe_for(system: str, data: Path, **more: Any) -> Recipe:
    name, _, own = SYSTEMS[system]
    changes = {**TINY, **QUICK, "data": str(data), **own, **more}
    return resolve(read_recipe(name), {key: value for key, value in changes.items() if value is not None})


def losses(out: Path) -> list[float]:
    rows = [row for row in results.read(out / "log.jsonl") if row.metric == "loss"]
    return [row.value for row in sorted(rows, key=lambda row: row.step)]


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_system_trains_on_its_own_layout_stopped_or_not(system: str, tmp_path: Path) -> None:
    data = SYSTEMS[system][1](tmp_path / "data")
    whole = run(recipe_for(system, data), tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 4
    assert all(math.isfinite(loss) for loss in losses(tmp_path / "whole"))
    run(recipe_for(system, data, max_steps=3), tmp_path / "parts")
    parts = run(recipe_for(system, data), tmp_path / "parts", resume=True)
    assert parts.read_bytes() == whole.read_bytes()
    assert system in checkpoints.load(whole).systems


def test_soft_tokens_train_on_text_features(tmp_path: Path) -> None:
    data = coco(tmp_path / "data")
    base = run(recipe_for("SD3", data), tmp_path / "base")
    changes = {**QUICK, "data": str(data), "base": str(base), "model": "MMDiT-digits", "split": "train", "layers": 1}
    changes |= {"dweight": 0.0}
    whole = run(resolve(read_recipe("digits-softrepa"), changes), tmp_path / "run")
    assert checkpoints.load(whole).network.config.num_words == 3  # of the features, 3 x 6
    assert losses(tmp_path / "run")[0] == pytest.approx(math.log(4), abs=0.5)
    with pytest.raises(UserError, match="its input_size is 2, that of the data is 16"):
        run(resolve(read_recipe("digits-softrepa"), {**changes, "data": "digits-captions"}), tmp_path / "other")


def test_text_that_equals_another_is_no_negative() -> None:
    from repa_eval.train.methods.softrepa import equal_captions

    text = torch.arange(24.0).reshape(4, 2, 3)
    text[3] = text[0]
    expected = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0]], dtype=torch.bool)
    assert torch.equal(equal_captions(text[:2], text), expected)


# --- what a batch of the official layout is


def test_a_batch_is_drawn_from_the_moments_of_its_samples(tmp_path: Path) -> None:
    data = official(tmp_path / "data")
    recipe, _, images, teachers = steps_of(recipe_for("REPA", data))
    reads = batches.reads_of(images, loop.build(recipe, images, teachers)[1].model)
    seen = []
    for step in range(2):  # 8 samples in batches of 4: an epoch
        fetched = next(iter(batches.loader(images, recipe, step, range(4), reads=reads)))
        [batch] = batches.parts(fetched, recipe, step, range(4), teachers, CPU, reads=reads)
        order = next(iter(batches.Order(8, recipe, step, range(4))))
        seen += order
        gens = seeding.generators(0, f"train step {step} posterior", range(4))
        eps = torch.stack([torch.randn(4, 4, 4, generator=generator) for generator in gens])
        files = [data / f"vae-sd/00000/img-mean-std-{index:08d}.npy" for index in order]
        mean, std = np.stack([np.load(file) for file in files]).reshape(4, 2, 4, 4, 4).transpose(1, 0, 2, 3, 4)
        assert np.allclose(batch.x, (mean + std * eps.numpy()) * 0.18215, atol=1e-6)
        assert batch.y.tolist() == [index % 3 for index in order]
        pictures = np.stack([np.asarray(Image.open(data / f"images/00000/img{i:08d}.png")) for i in order])
        assert torch.equal(batch.images, torch.from_numpy(pictures).permute(0, 3, 1, 2))
        assert torch.equal(batch.teachers[0], teachers[0](batch.images).patches)
    assert sorted(seen) == list(range(8))


def test_one_coin_mirrors_all_of_a_sample(tmp_path: Path) -> None:
    images = load_data(str(layout_files.gmem(tmp_path)), "train")
    recipe = recipe_for("GMem", tmp_path, batch_size=64, max_steps=1)
    [step] = batches.Order(len(images), recipe, 0, range(64), mirrors=True)
    plain = next(iter(batches.Order(len(images), recipe, 0, range(64))))
    assert [index % len(images) for index in step] == plain
    flipped = torch.tensor([index >= len(images) for index in step])
    assert 20 <= int(flipped.sum()) <= 44
    fetched = next(iter(batches.loader(images, recipe, 0, range(64), reads=batches.ModelInput("latents"))))
    sign = torch.where(flipped, -1.0, 1.0)  # the layout's mirrored tensors are the others' negatives
    means, features, tokens = (
        torch.from_numpy(values)[plain]
        for values in (layout_files.MEANS, layout_files.FEATURES, layout_files.CLASS_TOKENS)
    )
    assert torch.equal(fetched.latents, means * sign[:, None, None, None])
    assert torch.equal(fetched.features, features * sign[:, None, None])
    assert torch.equal(fetched.class_tokens, tokens * sign[:, None])


def test_a_teacher_whose_tokens_the_data_bring_is_not_loaded(tmp_path: Path) -> None:
    data = layout_files.erw(tmp_path / "data")
    run(recipe_for("ERW", data, enc_type="dinov2-vit-b"), tmp_path / "run")  # no weights of it are here
    haste = {**OF_SHARDS, "num_classes": 6, "student_layers": [1], "teacher_layers": [1]}
    with pytest.raises(UserError, match="bring features of tiny-vit and no images: its attention cannot be distilled"):
        run(recipe_for("HASTE", data, **haste), tmp_path / "haste")
    with pytest.raises(UserError, match=r"enc_type a,b: the data shards:.* bring the features of one teacher"):
        run(recipe_for("ERW", data, enc_type="a,b"), tmp_path / "two")
    assert not (tmp_path / "two").exists()


# --- the published loop's numbers


class Given(ImageSource):
    """The latents, labels and teacher tokens of a golden case, in the order of its steps."""

    name, split, num_classes = "given", "train", 10
    gives = frozenset({"latents", "labels", "features"})

    def __init__(self, arrays: dict[str, Any]) -> None:
        self.values = {key: torch.from_numpy(arrays[key]).flatten(0, 1) for key in ("x", "y", "z_0")}
        self.latent_shape, self.feature_width = tuple(self.values["x"].shape[1:]), self.values["z_0"].shape[-1]

    def __len__(self) -> int:
        return len(self.values["y"])

    def fetch(self, indices: Any, kinds: Any = ()) -> Samples:
        x, y, z = (values[list(indices)] for values in self.values.values())
        return Samples(latents=x, labels=y, features=z)


def test_the_losses_are_those_of_the_official_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = GOLDEN / "repa" / "train_steps_ema.json"
    case = json.loads(path.read_text())
    arrays, config = dict(np.load(path.with_suffix(".npz"))), case["config"]
    draws = {name: torch.from_numpy(arrays[key]) for name, key in
             {"time": "t_draw", "noise": "noise", "drop": "drop_draw"}.items()}  # fmt: skip
    steps = iter(range(config["steps"]))

    def published(_self: Repa, _batch: Any, _generators: Any) -> dict[str, torch.Tensor]:
        step = next(steps)
        return {name: values[step] for name, values in draws.items()}

    monkeypatch.setattr(Repa, "draws", published)
    monkeypatch.setattr(loop, "load_data", lambda *_: Given(arrays))
    monkeypatch.setattr(batches.seeding, "permutation", lambda size, *_: torch.arange(size))
    filled = repa.network(config["model"], case).state_dict()
    build = loop.build

    def fill(*given: Any) -> Any:
        recipe, objective = build(*given)
        objective.model.load_state_dict(filled)
        return recipe, objective

    monkeypatch.setattr(loop, "build", fill)
    own = {key: config["model"][key] for key in ("depth", "hidden_size", "num_heads", "patch_size", "projector_dim")}
    own |= {"input_size": 8, "num_classes": 10, "encoder_depth": config["model"]["encoder_depth"], "fused_attn": False}
    recipe = resolve(
        read_recipe("imagenet/repa"),
        {**own, "batch_size": 4, "max_steps": 3, "checkpoint_every": 3, "log_every": 1, "mixed_precision": "no",
         "num_workers": 0},
    )  # fmt: skip
    last = run(recipe, tmp_path / "run")
    rows = results.read(tmp_path / "run" / "log.jsonl")
    values = {(row.metric, row.step): row.value for row in rows}
    for step in range(3):
        assert values["denoising_loss", step + 1] == pytest.approx(arrays["loss"][step], rel=1e-5)
        assert values["proj_loss", step + 1] == pytest.approx(0.5 * arrays["proj_loss"][step], abs=1e-6)
        assert values["grad_norm", step + 1] == pytest.approx(arrays["grad_norm"][step], rel=1e-5)
    saved = state.load_checkpoint(last)
    compared = [name for name in arrays if name.startswith(("param:", "ema:"))]
    for name in compared:
        kind, _, key = name.partition(":")
        start, found = filled[key], saved["model" if kind == "param" else "ema"][key]
        torch.testing.assert_close(found, torch.from_numpy(arrays[name]), rtol=1e-5, atol=1e-3 * 3e-4)
        assert torch.equal(found, start) == (key == "pos_embed") or kind == "ema"
    assert len(compared) > 5


# --- killed and resumed


class Killed(BaseException):
    """Stands for SIGKILL inside one process."""


class Kill(Callback):
    """Ends the process at a step, between two checkpoints."""

    def on_log(self, step: int, _values: Any) -> None:
        if step == 13:
            raise Killed


def test_twenty_steps_on_photographs_killed_and_resumed(tmp_path: Path) -> None:
    data = official_folder(tmp_path / "data", count=64)
    recipe = recipe_for("REPA", data, max_steps=20, batch_size=8, checkpoint_every=5)
    whole = run(recipe, tmp_path / "whole")
    with pytest.raises(Killed):
        run(recipe, tmp_path / "killed", callbacks=[Kill()])
    assert state.latest_checkpoint(tmp_path / "killed") == state.checkpoint_path(tmp_path / "killed", 10)
    resumed = run(recipe, tmp_path / "killed", resume=True)
    assert resumed.read_bytes() == whole.read_bytes()
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert np.mean(losses(tmp_path / "whole")[-5:]) < np.mean(losses(tmp_path / "whole")[:5])
    assert set(files_of(tmp_path / "killed")) == set(files_of(tmp_path / "whole"))
