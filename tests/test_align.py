"""Hidden states and alignment: paired noise, one forward for all layers, rows of the contract."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers import digits, wake
from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.diffusion.model import DiffusionModel
from repa_eval.errors import UserError
from repa_eval.evaluation.alignment import RAW, Preparation, align
from repa_eval.features.capture import Capture
from repa_eval.features.hidden_states import hidden_features
from repa_eval.features.teacher import teacher_features
from repa_eval.interfaces.images import to_signed
from repa_eval.interfaces.teacher import Teacher, load_teacher
from repa_eval.metrics.cka import cka
from repa_eval.metrics.cknna import cknna
from repa_eval.models.sit import SiT, SiTConfig
from repa_eval.results import protocol_hash, records_of

LINEAR = Interpolant()


def awake(**sizes: int) -> SiT:
    """A model whose blocks differ."""
    small = {"input_size": 8, "in_channels": 1, "num_classes": 10, "hidden_size": 32, "depth": 3, "num_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SiT(SiTConfig(**{**small, **sizes}))
    wake(model)
    return model.eval()


class Spy(DiffusionModel):
    """A model that keeps what it was asked."""

    def __init__(self, model: SiT) -> None:
        super().__init__()
        self.model = model
        self.config = model.config
        self.seen: list[tuple[Tensor, Tensor, Tensor, tuple[int, ...]]] = []

    def forward(self, x: Tensor, t: Tensor, y: Tensor, *, taps: tuple[int, ...]) -> tuple[Tensor, dict[int, Tensor]]:
        self.seen.append((x, t, y, taps))
        return self.model(x, t, y, taps=taps)


def another(teacher: Teacher) -> Teacher:
    """The same teacher with other weights."""
    other = copy.deepcopy(teacher)
    other.digest = "another"
    return other


def features(model: nn.Module, count: int = 30, *, t: float = 0.3, **more: object) -> dict[int, np.ndarray]:
    layers = more.pop("layers", (1, 3))
    capture = Capture(**{"interpolant": LINEAR, **more})  # type: ignore[arg-type]
    return hidden_features(model, digits("test").head(count), layers=layers, t=t, capture=capture)  # type: ignore


# --- features


@pytest.mark.parametrize("batch_size", [1, 7, 30])
def test_features_do_not_depend_on_the_batch_size(batch_size: int) -> None:
    expected, given = features(awake()), features(awake(), batch_size=batch_size)
    for layer in (1, 3):
        assert given[layer].shape == (30, 32)
        assert given[layer].dtype == np.float32
        np.testing.assert_allclose(given[layer], expected[layer], rtol=0, atol=1e-6)


def test_features_of_an_image_do_not_depend_on_the_others() -> None:
    few, many = features(awake(), 10), features(awake(), 30)
    np.testing.assert_allclose(few[3], many[3][:10], rtol=0, atol=1e-6)


def test_the_same_noise_at_every_time_and_for_every_model() -> None:
    noises = []
    for t in (0.25, 0.5, 1.0):
        spy = Spy(awake())
        features(spy, t=t)
        [(x, times, labels, taps)] = spy.seen  # one forward for all layers
        assert taps == (1, 3)
        assert times.tolist() == [t] * 30
        assert labels.tolist() == [10] * 30  # the null label: the class must not leak
        clean = to_signed(digits("test").head(30).pixels(range(30)))
        noises.append((x - (1 - t) * clean) / t)
    for noise in noises[:2]:
        torch.testing.assert_close(noise, noises[2], rtol=0, atol=1e-5)
    assert abs(float(noises[2].mean())) < 0.1
    assert float(noises[2].std()) == pytest.approx(1, abs=0.05)
    assert len(noises[2].flatten(1).unique(dim=0)) == 30


def test_another_seed_is_another_noise() -> None:
    assert not np.allclose(features(awake())[3], features(awake(), seed=1)[3])
    assert np.array_equal(features(awake(), t=0.0)[3], features(awake(), t=0.0, seed=1)[3])  # no noise at t = 0


def test_the_path_of_the_checkpoint_is_taken() -> None:
    cosine = Interpolant(path_type="cosine")
    assert not np.allclose(features(awake())[3], features(awake(), interpolant=cosine)[3])


def test_taps_are_what_hooks_would_see() -> None:
    model = awake()
    seen: dict[int, Tensor] = {}
    handles = [
        block.register_forward_hook(lambda _m, _i, out, layer=layer: seen.update({layer: out}))
        for layer, block in enumerate(model.blocks, 1)
    ]
    taken = features(model, layers=(1, 2, 3), t=0.4)
    for handle in handles:
        handle.remove()
    for layer in (1, 2, 3):
        np.testing.assert_array_equal(taken[layer], seen[layer].mean(1).numpy())


def test_features_are_means_over_tokens_of_the_averaged_model_in_eval_mode() -> None:
    model = awake().train()
    features(model)
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_teacher_features_are_those_of_clean_images() -> None:
    teacher, images = load_teacher("digits-vit"), digits("test").head(20)
    expected = teacher(images.pixels(range(20))).patches.mean(1).numpy()
    for batch_size in (6, 20):
        np.testing.assert_allclose(
            teacher_features(teacher, images, capture=Capture(batch_size=batch_size)), expected, atol=1e-5
        )


@pytest.mark.parametrize("t", [-0.01, 1.01, float("nan")])
def test_times_outside_of_the_path_are_refused(t: float) -> None:
    with pytest.raises(UserError, match=r"timestep .* is outside \[0, 1\] \(0 = data, 1 = noise\)"):
        features(awake(), t=t)


# --- rows


def test_rows_of_a_map() -> None:
    teacher, images = load_teacher("digits-vit"), digits("test-large").head(50)
    rows = align(
        awake(), teacher, images, layers=(3, 1), timesteps=(0.1, 0.4), metrics=("cka", "cknna"),
        capture=Capture(seed=5), columns={"run": "mine", "step": 7},
    )  # fmt: skip
    cells = [(row.timestep, row.layer, row.metric) for row in rows]
    assert cells == [(t, layer, metric) for t in (0.1, 0.4) for layer in (3, 1) for metric in ("cka", "cknna")]
    assert {(row.run, row.step, row.n, row.seed, row.note) for row in rows} == {("mine", 7, 50, 5, None)}
    [record] = records_of(rows).values()
    assert record | {"kind": "alignment", "data": "digits", "split": "test-large", "num_images": 50} == record
    assert record | {"teacher": "digits-vit", "teacher_hash": teacher.digest, "data_hash": images.digest()} == record
    assert record | {"label": "null", "t_convention": "t=1 noise", "path_type": "linear", "seed": 5} == record
    assert {row.protocol for row in rows} == {protocol_hash(record)}


def test_values_are_the_metrics_of_normalised_features() -> None:
    model, teacher, images = awake(), load_teacher("digits-vit"), digits("test-large").head(50)
    target = teacher_features(teacher, images)
    hidden = hidden_features(model, images, layers=(2,), t=0.2)[2]

    def unit(rows: np.ndarray) -> np.ndarray:
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def clamped(rows: np.ndarray) -> np.ndarray:
        limit = np.mean([np.quantile(np.abs(row), 0.95) for row in rows])
        return np.clip(rows, -limit, limit)

    cases = {
        Preparation(): (unit(clamped(hidden)), unit(clamped(target))),  # as platonic-rep's callers
        Preparation(clamp=1.0): (unit(hidden), unit(target)),
        Preparation(normalise=False): (clamped(hidden), clamped(target)),
        RAW: (hidden, target),
    }
    for preparation, (x, y) in cases.items():
        rows = align(model, teacher, images, layers=(2,), timesteps=(0.2,), preparation=preparation)
        values = {row.metric: row.value for row in rows}
        assert values == {"cknna": pytest.approx(cknna(x, y), rel=1e-4), "cka": pytest.approx(cka(x, y), rel=1e-4)}


def test_what_changes_the_number_changes_the_protocol() -> None:
    model, teacher, images = awake(), load_teacher("digits-vit"), digits("test-large").head(40)
    cell = {"layers": (1,), "timesteps": (0.3,), "metrics": ("cka",)}
    hashes = {
        align(model, teacher, images, **cell)[0].protocol,
        align(model, teacher, images, **cell, capture=Capture(seed=1))[0].protocol,
        align(model, teacher, images, **cell, preparation=RAW)[0].protocol,
        align(model, teacher, images, **cell, preparation=Preparation(clamp=1.0))[0].protocol,
        align(model, teacher, images.head(39), **cell)[0].protocol,
        align(model, teacher, digits("val").head(40), **cell)[0].protocol,
        align(model, teacher, images, **cell, capture=Capture(interpolant=Interpolant(path_type="cosine")))[0].protocol,
        align(model, another(teacher), images, **cell)[0].protocol,
    }
    assert len(hashes) == 8
    # the batch size does not, and neither do layers, times and metrics, which have columns of their own
    others = align(
        model, teacher, images, layers=(2, 3), timesteps=(0.5,), metrics=("cknna",), capture=Capture(batch_size=7)
    )
    assert {row.protocol for row in others} == {align(model, teacher, images, **cell)[0].protocol}


def test_a_model_that_breaks_names_the_layer() -> None:
    model = awake()
    with torch.no_grad():
        model.blocks[1].attn.proj.bias[3] = float("nan")
    teacher, images = load_teacher("digits-vit"), digits("test").head(20)
    with pytest.raises(UserError, match=r"layer 2 at t=0\.3: features of image 0 are not finite"):
        align(model, teacher, images, layers=(1, 2, 3), timesteps=(0.3,), metrics=("cka",))


def test_layers_that_do_not_exist_are_refused() -> None:
    with pytest.raises(UserError, match=r"layer 4: this model has blocks 1\.\.3"):
        align(awake(), load_teacher("digits-vit"), digits("test").head(20), layers=(4,))


def test_an_unknown_metric_is_refused_before_anything_is_computed() -> None:
    spy = Spy(awake())
    with pytest.raises(UserError, match="unknown alignment metric 'cke'; did you mean 'cka'"):
        align(spy, load_teacher("digits-vit"), digits("test").head(20), layers=(1,), metrics=("cke",))
    assert not spy.seen


def test_a_teacher_that_cannot_read_the_images_says_so() -> None:
    from repa_eval.interfaces.images import Images

    large = Images("mine", "all", np.zeros((4, 3, 16, 16), np.uint8), np.zeros(4, np.int64), 1)
    with pytest.raises(UserError, match="teacher digits-vit reads 1x8x8 images, not 3x16x16"):
        teacher_features(load_teacher("digits-vit"), large)
