"""`import repa_eval` is enough: each name, what may be given for each argument, models that come back as they were."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from test_align import awake
from torch import Tensor, nn

import repa_eval as re
from helpers import ROOT, digits, run, tiny
from repa_eval import cli, data, extractors, results, teachers
from repa_eval.features.capture import Capture
from repa_eval.interfaces.monitor import Monitor as Contract
from repa_eval.metrics.fid import frechet_distance
from repa_eval.probes.splits import Splits

matplotlib.use("agg")
IMAGES = digits("test").head(24)
PIXELS = IMAGES.images


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tiny("repa"), tmp_path_factory.mktemp("runs") / "mine")


def values(measured: re.Measurement) -> list[Any]:
    return [(row.metric, row.layer, row.timestep, row.value) for row in measured]


# --- the package


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_import_is_quick_and_without_torch() -> None:
    code = """
import sys, time
began = time.perf_counter()
import repa_eval
took = time.perf_counter() - began
dir(repa_eval), repa_eval.features, repa_eval.data.load
print(took, "torch" in sys.modules, "numpy" in sys.modules)
"""
    took, torch_there, numpy_there = min(python(code).split() for _ in range(3))
    assert float(took) < 0.1
    assert (torch_there, numpy_there) == ("False", "False")


@pytest.mark.parametrize(
    "first",
    [
        "import repa_eval",
        "import repa_eval.align, repa_eval.features.capture",
        "import repa_eval.train.loop",
        "from repa_eval.train.start import train; from repa_eval.train import recipe",
        "from repa_eval.align import align, Monitor",
        "from repa_eval import align, features",
        "from repa_eval.features.capture import Capture; from repa_eval.api.alignment import align",
        "import repa_eval.evaluation.alignment",
    ],
)
def test_modules_can_be_called_in_any_order_of_imports(first: str) -> None:
    after = """
import inspect, types, repa_eval, repa_eval.features.capture, repa_eval.align, repa_eval.train.recipe
from repa_eval.align import Monitor, align
from repa_eval import features
assert repa_eval.Monitor is Monitor and isinstance(repa_eval.align, types.ModuleType)
assert inspect.signature(repa_eval.align) == inspect.signature(align)
assert "layers" in inspect.signature(features).parameters
assert "callbacks" in inspect.signature(repa_eval.train).parameters
assert repa_eval.train.recipe.Recipe
for function in (repa_eval.align, repa_eval.features):
    try:
        function("no-such-file.pt", images="digits")
    except repa_eval.UserError as error:
        assert "does not exist" in str(error), error
print("well")
"""
    assert python(f"{first}\n{after}") == "well"


def test_what_type_checkers_read_is_what_is_there() -> None:
    stub = ast.parse((ROOT / "repa_eval" / "__init__.pyi").read_text(encoding="utf-8"))
    told = {alias.asname: node.module for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    places = {name: f"repa_eval.{place}" for name, place in re._PLACES.items()}  # type: ignore[attr-defined]
    assert told == places | dict.fromkeys(re._DOORS, "repa_eval")  # type: ignore[attr-defined]
    assert sorted(told) == sorted(re.__all__)
    assert set(re.__all__) <= set(dir(re))
    for name in re.__all__:
        found = getattr(re, name)
        assert callable(found) or callable(found.load), name
    with pytest.raises(AttributeError, match="no attribute 'aling'"):
        re.aling  # type: ignore[attr-defined]  # noqa: B018


# --- names, paths and objects


def test_whatever_names_the_same_gives_the_same_numbers(checkpoint: Path) -> None:
    opened = re.load(checkpoint)
    how: dict[str, Any] = {"layers": "1-2", "timesteps": 0.1}
    first = re.align(checkpoint, "digits-vit", PIXELS, **how)
    assert len(first) == 4
    for model in (opened, opened.model, str(checkpoint), nn.DataParallel(opened.model)):
        assert values(re.align(model, teachers.load("digits-vit"), IMAGES, **how)) == values(first)
    tensor = torch.from_numpy(PIXELS.transpose(0, 2, 3, 1))
    assert values(re.align(opened, ["digits-vit"], tensor, layers=[1, 2], timesteps=[0.1])) == values(first)
    assert first[0].run == "mine"
    assert first[0].step == 6


def test_what_the_checkpoint_records_is_the_default(checkpoint: Path) -> None:
    measured = re.align(checkpoint, layers=1, timesteps=[0.1], num_images=20)
    [record] = measured.protocols.values()
    assert (record["teacher"], record["data"], record["split"]) == ("digits-vit", "digits", "test-large")
    assert re.align(checkpoint, images="digits", layers=1, timesteps=0.1, metrics="cka")[0].n == 600
    with pytest.raises(re.UserError, match=r"layer 3: this model has blocks 1\.\.2; its aligned block is 1"):
        re.align(checkpoint, layers=3)


def test_images_of_a_folder(checkpoint: Path, tmp_path: Path) -> None:
    folder = re.sample(checkpoint, 12, tmp_path / "made", num_steps=2)
    for images in (folder, str(folder), f"folder:{folder}"):
        assert re.align(checkpoint, images=images, layers=1, timesteps=0.1, metrics="cka")[0].n == 12


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"model": nn.Linear(2, 2)}, "Linear is not one of this package's diffusion models.*repa_eval.wrap"),
        ({"model": 3}, "a int is no model"),
        ({"model": "nothing.pt"}, "checkpoint 'nothing.pt' does not exist"),
        ({"teacher": None}, "no teacher is recorded for this model"),
        ({"teacher": nn.Linear(2, 2)}, "Linear is no Teacher"),
        ({"teacher": []}, "no teacher is given"),
        ({"images": None}, "does not say what it was trained on"),
        ({"images": PIXELS.astype(np.float32)}, r"images of type float32 in 0\.\.255: say range="),
        ({"split": "val"}, "only the name of a data set has splits"),
        ({"timesteps": [0.1, 1.2]}, r"timestep 1\.2 is outside"),
        ({"timesteps": []}, "no timesteps"),
        ({"layers": "1-9"}, r"layer 4: this model has blocks 1\.\.3"),
        ({"device": "tpu"}, "device 'tpu': choose auto"),
        ({"metrics": "cknn"}, "did you mean 'cknna'"),
    ],
)
def test_what_cannot_be_used_is_one_line(given: dict[str, Any], told: str) -> None:
    with pytest.raises(re.UserError, match=told) as caught:
        re.align(**{"model": awake(), "teacher": "digits-vit", "images": PIXELS, **given})
    assert "\n" not in str(caught.value)


# --- results


def test_the_forms_of_a_result() -> None:
    grid = re.align(awake(), ["digits-vit", "digits-vit-random"], PIXELS, layers=[3, 1], timesteps=[0.3, 0.1])
    table = grid.to_array("cknna", teacher="digits-vit")
    assert (table.shape, grid.layers, grid.timesteps) == ((2, 2), [1, 3], [0.1, 0.3])
    by_hand = {(row.layer, row.timestep): row.value for row in grid.rows[:8] if row.metric == "cknna"}
    assert table.tolist() == [[by_hand[1, 0.1], by_hand[1, 0.3]], [by_hand[3, 0.1], by_hand[3, 0.3]]]
    frame = grid.to_frame()
    assert (len(frame), frame.iloc[0].metric) == (16, "cknna")
    assert {row.protocol for row in grid} == set(grid.protocols)
    with pytest.raises(re.UserError, match="with several teachers: say teacher='digits-vit' or 'digits-vit-random'"):
        grid.to_array("cknna")
    with pytest.raises(re.UserError, match="unknown metric 'cka2'; did you mean 'cka'"):
        grid.plot("cka2")
    ax = grid.plot("cka", teacher="digits-vit")
    assert ax.get_title() == "cka with digits-vit"
    figure = matplotlib.figure.Figure()
    own = figure.add_subplot()
    assert grid.plot("cka", own, teacher="digits-vit") is own
    assert [label.get_text() for label in own.get_yticklabels()] == ["1", "3"]
    assert not own.yaxis_inverted()
    assert {text.get_text() for text in own.texts} == {
        f"{value:.2f}" for value in grid.to_array("cka", teacher="digits-vit").ravel()
    }


# --- models come back as they were


class Peft(nn.Module):
    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_model = base

    def get_base_model(self) -> nn.Module:
        return self.base_model


def state_of(model: nn.Module) -> list[Any]:
    modes = [module.training for module in model.modules()]
    return [modes, [(parameter.requires_grad, parameter.device) for parameter in model.parameters()]]


@pytest.mark.parametrize("call", ["align", "features", "probe", "sample", "monitor", "an error"])
def test_mode_and_gradients_come_back(call: str, tmp_path: Path) -> None:
    model = awake().train()
    model.blocks[0].eval()
    model.blocks[1].requires_grad_(False)
    teacher = teachers.load("digits-vit").train()
    before = [state_of(model), state_of(teacher)]
    if call == "align":
        re.align(model, teacher, PIXELS, layers=1, timesteps=0.1)
    elif call == "features":
        re.features(model, PIXELS, layers=1, cache=False)
    elif call == "probe":
        few = [digits(split).head(40) for split in ("train", "val", "test")]
        re.probe(model, Splits(*few), layers=1, timesteps=0.1, teacher=teacher)
    elif call == "sample":
        re.sample(model, 2, tmp_path / "x.npz", num_steps=1)
    elif call == "monitor":
        re.Monitor(teacher=teacher, images=PIXELS, layers=[1], timesteps=[0.1])(3, model)
    else:
        with pytest.raises(re.UserError):
            re.align(model, teacher, np.zeros((9, 3, 8, 8), np.uint8), layers=1)
    assert [state_of(model), state_of(teacher)] == before


def test_wrappers_are_looked_through(tmp_path: Path) -> None:
    model = awake().train()
    expected = values(re.align(model, "digits-vit", PIXELS, layers=2, timesteps=0.1))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(model)
        for wrapped in (parallel, torch.compile(parallel, backend="eager"), Peft(model), torch.compile(Peft(model))):
            assert values(re.align(wrapped, "digits-vit", PIXELS, layers=2, timesteps=0.1)) == expected
            assert all(module.training for module in wrapped.modules())
    finally:
        torch.distributed.destroy_process_group()


def test_a_monitor_moves_only_the_teachers_that_it_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = teachers.load("digits-vit")
    monitor = re.Monitor(teacher=[mine, "digits-vit-random"], images=PIXELS, layers=[1], timesteps=[0.1])
    moved: list[str] = []
    monkeypatch.setattr(type(mine), "to", lambda self, device: moved.append(self.name) or self)
    monitor(3, awake())
    assert moved == ["digits-vit-random"]


# --- features


def test_features_are_an_array_and_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = awake()
    found = re.features(model, PIXELS, layers=[3, 1], timesteps=[0.1, 0.5], cache=tmp_path)
    assert (found.shape, found.dtype) == ((2, 2, 24, 32), np.float32)
    alone = re.features(model, PIXELS, layers=1, timesteps=0.5, cache=False)
    assert np.array_equal(alone[0, 0], found[1, 1])
    tokens = re.features(model, PIXELS, layers=1, timesteps=0.5, pool="none", cache=False)
    np.testing.assert_allclose(tokens.mean(3), alone, atol=1e-6)
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    assert np.array_equal(re.features(model, PIXELS, layers=[3, 1], timesteps=[0.1, 0.5], cache=tmp_path), found)
    assert calls == []
    with torch.no_grad():
        model.blocks[0].attn.proj.bias.add_(1)
    assert not np.array_equal(re.features(model, PIXELS, layers=[3, 1], timesteps=[0.1, 0.5], cache=tmp_path), found)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    re.features(model, PIXELS, layers=1)
    assert list((tmp_path / "home" / "repa-eval" / "features" / "kept").iterdir())


# --- images


def test_images_in_all_readings() -> None:
    rng = np.random.default_rng(0)
    grey, colour = (rng.integers(0, 256, (5, channels, 6, 4), dtype=np.uint8) for channels in (1, 3))
    for array in (grey, colour):
        source = re.images(torch.from_numpy(array), labels=[0, 1, 2, 1, 0])
        assert np.array_equal(source.images, array)
        assert (source.num_classes, source.labels.tolist()) == (3, [0, 1, 2, 1, 0])
        assert np.array_equal(re.images(array.transpose(0, 2, 3, 1)).images, array)
        assert np.array_equal(re.images(array / np.float32(255), range=(0, 1)).images, array)
        assert np.array_equal(re.images(array / np.float32(127.5) - 1, range=(-1, 1)).images, array)
    odd = np.zeros((2, 3, 5, 3), np.uint8)
    assert re.images(odd, channels_last=True).images.shape == (2, 3, 3, 5)
    assert re.images(odd, channels_last=False).images.shape == (2, 3, 5, 3)


@pytest.mark.parametrize(
    ("array", "more", "told"),
    [
        (np.zeros((2, 3, 5, 3), np.uint8), {}, r"shape 2x3x5x3 may be .* say channels_last="),
        (np.zeros((2, 4, 5, 6), np.uint8), {}, "have no axis of 1 or 3 channels"),
        (np.zeros((2, 1, 5, 6), np.uint8), {"channels_last": True}, "have no axis of 1 or 3 channels"),
        (np.zeros((2, 5, 6), np.uint8), {}, r"images of shape 2x5x6: .*array\[:, None\]"),
        (np.zeros((0, 1, 5, 6), np.uint8), {}, "0 images"),
        (np.zeros((2, 1, 5, 6), np.int64), {}, "images of type int64: expected uint8, or floats"),
        (np.zeros((2, 1, 5, 6)), {}, r"say range=\(0, 1\) or range=\(-1, 1\)"),
        (np.zeros((2, 1, 5, 6)) - 0.1, {"range": (0, 1)}, r"60 values .* outside range=\(0, 1\): .* -0\.1\.\.-0\.1"),
        (np.full((2, 1, 5, 6), np.nan), {"range": (0, 1)}, "60 values of the images are outside"),
        (np.zeros((2, 1, 5, 6)), {"range": (0, 255)}, r"range \(0, 255\): choose"),
        (np.zeros((2, 1, 5, 6), np.uint8), {"range": (0, 1)}, "are uint8, whose range is 0..255"),
        (np.zeros((2, 1, 5, 6), np.uint8), {"labels": [1]}, r"labels are int64 \(1,\); expected 2 class numbers"),
        (np.zeros((2, 1, 5, 6), np.uint8), {"labels": [0.0, 1.0]}, "labels are float64"),
    ],
)  # fmt: skip
def test_images_that_are_refused(array: Any, more: dict[str, Any], told: str) -> None:
    with pytest.raises(re.UserError, match=told):
        re.images(array, **more)


# --- sample quality


class Judge(nn.Module):
    """Features by a fixed projection, noisy in train mode."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.project = nn.Linear(64, 6)
        nn.init.normal_(self.project.weight, generator=torch.Generator().manual_seed(seed))
        self.dropout = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        return self.dropout(self.project(images.flatten(1).float() / 255))


def moments_of(net: nn.Module, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with torch.no_grad():
        rows = net.eval()(torch.from_numpy(images)).numpy().astype(np.float64)
    return rows.mean(0), np.cov(rows.T)


def test_the_frechet_distance_batch_by_batch() -> None:
    net = Judge().train()
    real, fake = digits("train").images[:300], digits("test-large").images[:200]
    one, other = re.FrechetDistance(extractor=net), re.FrechetDistance(extractor=net)
    for first in range(0, 300, 70):
        (one if first < 140 else other).update(real[first : first + 70], real=True)
    one.update(torch.from_numpy(fake[:90]), real=False)
    other.update(fake[90:], real=False)
    one.merge(other)
    assert one.num_images == (300, 200)
    assert net.training
    expected = frechet_distance(*moments_of(net, real), *moments_of(net, fake))
    assert one.compute() == pytest.approx(expected, rel=1e-6)
    one.reset(real=False)
    assert one.num_images == (300, 0)
    with pytest.raises(re.UserError, match="0 fake images were seen"):
        one.compute()
    one.update(fake / np.float32(255) if one.range else fake, real=False)
    assert one.compute() == pytest.approx(expected, rel=1e-6)
    one.reset()
    assert one.num_images == (0, 0)
    floats = re.FrechetDistance(extractor=net, range=(0, 1))
    floats.update(real / np.float32(255), real=True)
    floats.update(fake / np.float32(255), real=False)
    assert floats.compute() == pytest.approx(expected, rel=1e-6)
    with pytest.raises(re.UserError, match="of two extractors cannot be merged"):
        floats.merge(re.FrechetDistance(extractor=Judge(seed=1)))


def test_fid_of_folder_npz_array_and_tensor(checkpoint: Path, tmp_path: Path) -> None:
    folder = re.sample(checkpoint, 40, tmp_path / "made", num_steps=2)
    archive = re.sample(re.load(checkpoint), 40, tmp_path / "made.npz", num_steps=2)
    pixels = np.load(archive)["arr_0"]
    recorded = re.fid(folder, metrics="fd")  # extractor and data are recorded beside the samples
    value = recorded.value("fd_digits")
    assert recorded[0].run == "mine"
    assert value > 0
    how: dict[str, Any] = {"extractor": "digits", "metrics": ["fd"]}
    for samples in (archive, str(archive), pixels, torch.from_numpy(pixels)):
        assert re.fid(samples, "digits", **how).value("fd_digits") == pytest.approx(value, rel=1e-6)
    net = Judge().train()
    own = re.fid(pixels, digits("reference").images, extractor=net, metrics="fd")
    assert net.training
    expected = frechet_distance(
        *moments_of(net, digits("reference").images), *moments_of(net, pixels.transpose(0, 3, 1, 2))
    )
    assert own.value("fd_judge") == pytest.approx(expected, rel=1e-5)
    [record] = own.protocols.values()
    assert (record["kind"], record["num_samples"], record["extractor"]) == ("sample quality", 40, "judge")
    with pytest.raises(re.UserError, match="name a reference"):
        re.fid(pixels, extractor="digits")


# --- training


class Told(re.Callback):
    def __init__(self) -> None:
        self.heard: list[Any] = []

    def on_log(self, step: int, values: Any) -> None:
        self.heard.append(("log", step, sorted(values)[:2]))

    def on_rows(self, rows: Any) -> None:
        self.heard.append(("rows", {row.metric for row in rows}, rows[0].step))

    def on_checkpoint(self, path: Path) -> None:
        assert path.is_file()
        self.heard.append(("checkpoint", path.name))


class OnlyCheckpoints:
    def __init__(self) -> None:
        self.paths: list[Path] = []

    def on_checkpoint(self, path: Path) -> None:
        self.paths.append(path)


def test_training_tells_its_callbacks(tmp_path: Path) -> None:
    told, few, steps = Told(), OnlyCheckpoints(), []
    recipe = tiny("vanilla", log_every=2, checkpoint_every=4, eval_every=3)
    more = {"num_samples": 8, "num_steps": 1, "final_samples": 0}
    last = re.train(
        recipe, tmp_path / "mine", callbacks=[told, few, lambda step, values: steps.append(step)], overrides=more,
        device="cpu",
    )  # fmt: skip
    assert last == tmp_path / "mine" / "checkpoints" / "0000006.pt"
    assert steps == [2, 4, 6]
    assert [path.name for path in few.paths] == ["0000004.pt", "0000006.pt"]
    assert [event[0] for event in told.heard] == ["log", "rows", "log", "checkpoint", "log", "checkpoint", "rows"]
    rows = [event for event in told.heard if event[0] == "rows"]
    assert [event[2] for event in rows] == [3, 6]
    assert {row.metric for row in results.read(tmp_path / "mine")} == set().union(*(event[1] for event in rows))
    again = re.train(recipe.to_dict(), tmp_path / "again", overrides=more, device="cpu")
    assert torch.load(again, weights_only=True)["model"].keys() == torch.load(last, weights_only=True)["model"].keys()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"recipe": "digits-rapa"}, "did you mean 'digits-repa'"),
        ({"overrides": {"max_stepz": 1}}, "did you mean 'max_steps'"),
        ({"callbacks": [3]}, r"callback of type int: give a function \(step, values\), or an object with on_log"),
        ({"callbacks": [Told]}, "callback Told is a class: give an object of it"),
        ({"device": "tpu"}, "device 'tpu': choose auto"),
    ],
)
def test_training_that_cannot_begin(given: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(re.UserError, match=told):
        re.train(**{"recipe": "digits-vanilla", "out": tmp_path / "run", **given})
    assert not (tmp_path / "run").exists()


# --- foreign networks


def test_a_wrapped_model_gives_the_numbers_of_the_model(tmp_path: Path) -> None:
    model = awake().train()
    wrapped = re.wrap(
        model, layers="blocks.*", run=lambda net, x, t, y: net(x, t, y)[0], image_shape=(1, 8, 8), num_classes=10
    )
    assert (wrapped.depth, wrapped.layer_names) == (3, ("blocks.0", "blocks.1", "blocks.2"))
    how: dict[str, Any] = {"layers": "2-3", "timesteps": [0.1]}
    assert values(re.align(wrapped, "digits-vit", PIXELS, **how)) == values(
        re.align(model, "digits-vit", PIXELS, **how)
    )
    assert np.array_equal(re.features(wrapped, PIXELS, cache=tmp_path), re.features(model, PIXELS, cache=False))
    few = Splits(*[digits(split).head(40) for split in ("train", "val", "test")])
    assert values(re.probe(wrapped, few, **how)) == values(re.probe(model, few, **how))
    for name, given in (("a", model), ("b", wrapped)):
        re.sample(given, 4, tmp_path / f"{name}.npz", num_steps=3, cfg_scale=1.5)
    assert np.array_equal(np.load(tmp_path / "a.npz")["arr_0"], np.load(tmp_path / "b.npz")["arr_0"])
    assert model.training
    with pytest.raises(re.UserError, match="layer 0"):
        wrapped(torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.int64), taps=[0])


class TwoStreams(nn.Module):
    """Blocks that return (text, image), times of 0..1000, latents of twice the pixels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.pairs = nn.ModuleList(Pair(block) for block in self.blocks)

    def forward(self, x: Tensor, timestep: Tensor) -> dict[str, Tensor]:
        hidden = x.reshape(len(x), 8, 16) * (1 + timestep[:, None, None] / 1000)
        for pair in self.pairs:
            _, hidden = pair(hidden)
        return {"sample": hidden.reshape(x.shape)}


class Pair(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros(len(hidden), 3, 16), torch.tanh(self.block(hidden))


def two_streams(**more: Any) -> Any:
    given: dict[str, Any] = {
        "layers": ["pairs.*"],
        "part": 1,
        "run": lambda net, x, t, y: net(x, timestep=1000 * t)["sample"],
        "image_shape": (2, 8, 8),
        "encode": lambda images: images.repeat(1, 2, 1, 1),
        "decode": lambda latents: latents[:, :1],
    }
    return re.wrap(TwoStreams(), **{**given, **more})


def test_a_foreign_model_from_monitor_to_report(tmp_path: Path) -> None:
    wrapped = two_streams()
    monitor = re.Monitor(
        teacher="digits-vit", images=PIXELS, timesteps=[0.1, 0.3], table=tmp_path / "mine", columns={"run": "mine"}
    )
    for step in (100, 200):
        assert len(monitor(step, wrapped)) == 8
    rows = results.read(tmp_path / "mine")
    assert [monitor.done(step, rows) for step in (100, 200, 300)] == [True, True, False]
    records = results.read_protocols(tmp_path / "mine")
    record = next(iter(records.values()))
    assert (record["network"], record["part"], record["layer_names"]) == ("TwoStreams", 1, ["pairs.0", "pairs.1"])
    assert "encode" in record
    samples = re.sample(wrapped, 8, tmp_path / "made.npz", num_steps=2)
    assert np.load(samples)["arr_0"].shape == (8, 8, 8, 1)
    made = json.loads((tmp_path / "made.npz.json").read_text())
    assert made["network"] == "TwoStreams"
    assert re.fid(samples, "digits", extractor="digits", metrics="fd").value("fd_digits") > 0
    answer = CliRunner().invoke(cli.main, ["report", str(tmp_path / "mine"), "--out", str(tmp_path / "report.html")])
    assert answer.exit_code == 0, answer.output
    assert "cknna" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_monitor_knows_a_whole_map(tmp_path: Path) -> None:
    model, common = awake(), {"images": PIXELS, "timesteps": [0.1, 0.3], "metrics": "cka"}
    monitor = re.Monitor(teacher="digits-vit", **common)
    rows = list(monitor(7, model))
    assert isinstance(monitor, Contract)
    assert monitor.done(7, rows)
    assert not monitor.done(8, rows)
    assert not monitor.done(7, [])
    assert not any(monitor.done(7, rows[:place] + rows[place + 1 :]) for place in range(len(rows)))
    others = [
        {"teacher": "digits-vit-random"}, {"teacher": ["digits-vit", "digits-vit-random"]}, {"images": PIXELS[1:]},
        {"timesteps": [0.1, 0.3, 0.5]}, {"metrics": "cka,cknna"}, {"layers": [1, 99]}, {"capture": Capture(seed=1)},
        {"columns": {"run": "another"}},
    ]  # fmt: skip
    for other in others:
        assert not re.Monitor(**{"teacher": "digits-vit", **common, **other}).done(7, rows), other
    assert re.Monitor(teacher="digits-vit", **common, layers="1-2", capture=Capture()).done(7, rows)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"part": None}, r"pairs\.0 returns a tuple of 2 .*say which with part="),
        ({"layers": "blocks.*.x"}, r"layers 'blocks\.\*\.x' fits no submodule of TwoStreams \(it has: blocks, pairs\)"),
        ({"run": lambda net, x, t, y: net(x, timestep=t)}, "run returns dict; needed is the velocity"),
        ({"image_shape": (2, 4, 8)}, "the images are 2x8x8 .*; this model reads latents 2x4x8"),
        ({"image_shape": (2, 8)}, r"image_shape \(2, 8\): give channels"),
        ({"num_classes": 0}, "num_classes 0: give 1 or more"),
    ],
)
def test_wrapping_that_cannot_work(more: dict[str, Any], told: str) -> None:
    with pytest.raises(re.UserError, match=told):
        re.align(two_streams(**more), "digits-vit", PIXELS, layers=1, timesteps=0.1)


def test_other_weights_and_another_call_are_other_features(tmp_path: Path) -> None:
    first = re.features(two_streams(), PIXELS, cache=tmp_path)
    slower = two_streams(run=lambda net, x, t, y: net(x, timestep=10 * t)["sample"])
    assert not np.array_equal(re.features(slower, PIXELS, cache=tmp_path), first)
    other = two_streams()
    with torch.no_grad():
        other.network.blocks[0].bias.add_(1)
    assert not np.array_equal(re.features(other, PIXELS, cache=tmp_path), first)


def test_a_network_without_a_timestep() -> None:
    network = timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=2, in_chans=1, embed_dim=24, depth=2, num_heads=2, num_classes=0
    ).train()
    found = re.align_module(network, "digits-vit", PIXELS, layers=["blocks.0", "blocks.1"], prefix_tokens=1)
    assert network.training
    assert found.to_array("cka").shape == (2, 1)
    same = re.align_module(
        torch.compile(network, backend="eager"), "digits-vit", PIXELS, layers="blocks.0", prefix_tokens=1,
        run=lambda net, pixels: net(pixels.float() / 127.5 - 1),
    )  # fmt: skip
    assert same[0].value == pytest.approx(found[0].value, abs=1e-6)
    assert {found.protocols[found[0].protocol or ""]["call"]} == {"pixels in [-1, 1], or by pretrained_cfg"}
    with pytest.raises(re.UserError, match="unknown submodule 'blocks"):
        re.align_module(network, "digits-vit", PIXELS, layers=["blocks.7"])


# --- the packages' doors


def test_doors_of_equal_shape(checkpoint: Path) -> None:
    assert len(data.load("digits", "val")) == 240
    assert teachers.load("digits-vit").name == "digits-vit"
    assert extractors.load("digits").name == "digits"
    assert re.load(checkpoint).diffusion_model is not None
    for door, kind in ((teachers.load, "teacher"), (extractors.load, "extractor")):
        with pytest.raises(re.UserError, match=f"unknown {kind} 'nobody'"):
            door("nobody")
