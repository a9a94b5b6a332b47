"""Numbers that must not depend on rounding: scales, shifts, equal distances, copies; checked by other formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from repa_eval.interfaces.metric import ALIGNMENT
from repa_eval.metrics.authpct import authpct
from repa_eval.metrics.cka import cka, cka_matrix
from repa_eval.metrics.cka_minibatch import cka_minibatch
from repa_eval.metrics.cka_unbiased import cka_unbiased
from repa_eval.metrics.cknna import cknna
from repa_eval.metrics.density_coverage import density_coverage
from repa_eval.metrics.fid import fd
from repa_eval.metrics.kid import kid
from repa_eval.metrics.kid_unbiased import kid_unbiased
from repa_eval.metrics.mifid import cosine_distance, mifid
from repa_eval.metrics.precision_recall import precision_recall
from repa_eval.metrics.rsa import rsa
from repa_eval.metrics.shared.manifold import nearest

Array = np.ndarray
SHIFTED = sorted(name for name, metric in ALIGNMENT.items() if metric.shift)
SCALED = sorted(name for name, metric in ALIGNMENT.items() if metric.scale)
DECOMPOSED = ("svcca", "pwcca")
FAMILY = ["cka", "cka_unbiased", "cka_minibatch", "cka_rbf", "cka_rbf_unbiased", "rv"]


def pair(seed: int = 0, n: int = 40) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((n, 4))
    x = common @ rng.standard_normal((4, 12)) + 0.5 * rng.standard_normal((n, 12))
    return x, common @ rng.standard_normal((4, 9)) + 0.5 * rng.standard_normal((n, 9))


def same_direction(n: int = 200) -> Array:
    """Rows of length 1 with a mean cosine of .998, as the hidden states of trained models have."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, 8)) @ rng.standard_normal((8, 64)) / 3 + 0.5 * rng.standard_normal((n, 64))
    x += 25 * rng.standard_normal(64)
    unit: Array = x / np.linalg.norm(x, axis=1, keepdims=True)
    return unit


# --- scales and shifts of alignment metrics


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(max_examples=8, deadline=None)
@given(power=st.integers(-25, 25), other=st.integers(-25, 25))
def test_a_scale_changes_nothing(name: str, dtype: type, power: int, other: int) -> None:
    x, y = (side.astype(dtype) for side in pair())
    function = ALIGNMENT.get(name).function
    far = function(x * dtype(10.0**power), y * dtype(10.0**other))
    assert far == pytest.approx(function(x, y), abs=2e-5 if dtype is np.float32 else 1e-8)


@pytest.mark.parametrize("name", SHIFTED)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(max_examples=8, deadline=None)
@given(size=st.floats(0.0, 1e6), seed=st.integers(0, 99))
def test_a_common_shift_changes_nothing(name: str, dtype: type, size: float, seed: int) -> None:
    x, y = pair()
    if dtype is np.float32 and name in DECOMPOSED:
        size *= 1e-3  # directions below the rounding of float32 are left out, and a larger shift makes them more
    shift = size * np.random.default_rng(seed).standard_normal(x.shape[1])
    moved = (x + shift).astype(dtype)
    back = moved.astype(np.float64) - shift.astype(dtype).astype(np.float64)  # what of x the dtype has kept
    function = ALIGNMENT.get(name).function
    assert function(moved, y) == pytest.approx(function(back, y), abs=1e-4 if dtype is np.float32 else 1e-6)


@pytest.mark.parametrize("name", FAMILY)
def test_features_are_aligned_with_themselves(name: str) -> None:
    x = same_direction()
    function = ALIGNMENT.get(name).function
    assert function(x, x) == pytest.approx(1.0, abs=1e-9)
    assert function(x.astype(np.float32), x.astype(np.float32)) == pytest.approx(1.0, abs=1e-6)


def test_the_published_constant_is_added_only_when_asked_for() -> None:
    """By platonic-rep's formula: 1e-6 decides the value where rows are nearly equal."""
    x = same_direction()
    K = x @ x.T
    np.fill_diagonal(K, 0.0)
    n = len(x)
    own = ((K * K).sum() + K.sum() ** 2 / ((n - 1) * (n - 2)) - 2 * (K @ K).sum() / (n - 2)) / (n * (n - 3))
    assert cka(x, x, unbiased=True, eps=1e-6) == pytest.approx(own / (own + 1e-6), rel=1e-6)
    assert own / (own + 1e-6) < 0.9


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("long", [1.0, 1e2, 1e4])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("width", [5, 512])  # by features, by Gram matrices
def test_cka_of_all_pairs_is_that_of_one(unbiased: bool, long: float, scale: float, width: int) -> None:
    rng = np.random.default_rng(3)
    common = rng.standard_normal((64, 5))
    x, y = (common @ rng.standard_normal((5, width)) + rng.standard_normal((64, width)) for _ in range(2))
    x[3] *= long
    y[3] *= long
    x, y = (scale * x).astype(np.float32), y.astype(np.float32)
    assert cka_matrix([x], [y], unbiased=unbiased)[0, 0] == pytest.approx(cka(x, y, unbiased=unbiased), abs=1e-5)


@pytest.mark.parametrize("long", [1.0, 1e2, 1e4])
@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
@pytest.mark.parametrize("width", [5, 512])
def test_one_batch_of_minibatch_cka_is_the_unbiased_one(long: float, scale: float, width: int) -> None:
    rng = np.random.default_rng(3)
    common = rng.standard_normal((64, 5))
    x, y = (common @ rng.standard_normal((5, width)) + rng.standard_normal((64, width)) for _ in range(2))
    x[3] *= long
    y[3] *= long
    near = x.astype(np.float32), y.astype(np.float32)
    found = cka_minibatch(np.float32(scale) * near[0], near[1])
    assert found == pytest.approx(cka_unbiased(*near), abs=1e-5)


@pytest.mark.parametrize("mean", [0.0, 10.0, 1e3, 1e5])
@pytest.mark.parametrize("function", [kid, kid_unbiased])
def test_a_large_mean_decides_no_kernel_distance(
    function: Callable[[Array, Array], dict[str, float]], mean: float
) -> None:
    """Features near one large mean: the cubes of their products differ by less than the rounding of float32."""
    rng = np.random.default_rng(0)
    real, fake = (rng.standard_normal((300, 32)) + mean).astype(np.float32), rng.standard_normal((250, 32)) * 1.1 + mean
    wide = real.astype(np.float64), fake.astype(np.float32).astype(np.float64)
    assert function(real, fake.astype(np.float32)) == pytest.approx(function(*wide), rel=1e-5)


KINDS_OF_ARRAYS: dict[str, Callable[[Array], Any]] = {
    "gradients": lambda x: torch.from_numpy(x.copy()).requires_grad_(),
    "bfloat16": lambda x: torch.from_numpy(x.copy()).bfloat16(),
    "float8": lambda x: torch.from_numpy(x.copy()).to(torch.float8_e5m2),
    "read only": lambda x: np.frombuffer(x.tobytes()).reshape(x.shape),
    "other bytes": lambda x: x.astype(">f8"),
    "lists": lambda x: x.tolist(),
    "whole numbers": lambda x: np.round(10 * x).astype(np.int16),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", KINDS_OF_ARRAYS)
def test_arrays_of_any_kind(kind: str) -> None:
    x, y = pair()
    sides = [KINDS_OF_ARRAYS[kind](side) for side in (x, y)]
    plain = [side.detach().double().numpy() if isinstance(side, torch.Tensor) else np.array(side) for side in sides]
    for name, metric in ALIGNMENT.items():
        assert metric.function(*sides) == pytest.approx(metric.function(*plain), abs=1e-6), name
    for function in (kid, kid_unbiased, precision_recall, density_coverage, authpct, fd):
        other = sides[0][:20] if kind == "lists" else KINDS_OF_ARRAYS[kind](x[:20])
        assert function(sides[0], other) == pytest.approx(function(plain[0], plain[0][:20]), rel=1e-4, abs=1e-6)  # type: ignore[operator]


@pytest.mark.parametrize("name", ["svcca", "pwcca", "cka", "cka_unbiased", "procrustes", "cknna", "mutual_knn"])
def test_a_large_constant_column_changes_nothing(name: str) -> None:
    metric = ALIGNMENT.get(name)
    x, y = (side.astype(np.float32) for side in pair(n=200))
    column = np.full((len(x), 1), 1e5 if metric.shift else 0.0, dtype=np.float32)
    assert metric.function(np.hstack([0.05 * x, column]), y) == pytest.approx(metric.function(0.05 * x, y), abs=1e-3)


def test_views_are_arrays() -> None:
    x, y = pair()
    for name, metric in ALIGNMENT.items():
        assert metric.function(x[::-1], y[::-1]) == pytest.approx(metric.function(x[::-1].copy(), y[::-1].copy())), name
        assert metric.function(x[:, ::-2], y) == pytest.approx(metric.function(x[:, ::-2].copy(), y)), name


def test_tiny_features_have_neighbours() -> None:
    x, y = (side.astype(np.float32) for side in pair())
    assert cknna(x * np.float32(1e-25), y, k=5) == pytest.approx(cknna(x, y, k=5), abs=1e-5)


# --- equal dissimilarities and distances


@pytest.mark.parametrize("dissimilarity", ["correlation", "euclidean"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_dissimilarities_share_a_rank(dissimilarity: str, dtype: type) -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 10, 150)
    one_hot = np.eye(10)[labels]
    features = one_hot @ rng.standard_normal((10, 32)) + rng.standard_normal((150, 32))
    places = np.triu_indices(150, 1)

    def dissimilarities(x: Array) -> Array:
        if dissimilarity == "correlation":
            return np.round(1 - np.corrcoef(x)[places], 9)
        return np.round(((x[:, None] - x[None]) ** 2).sum(axis=2)[places], 9)

    for x, y in ((features, one_hot), (one_hot, np.eye(5)[labels // 2])):
        x, y = x.astype(dtype), y.astype(dtype)
        wanted = stats.spearmanr(*(dissimilarities(side.astype(np.float64)) for side in (x, y))).statistic
        assert rsa(x, y, dissimilarity=dissimilarity) == pytest.approx(wanted, abs=1e-6)


def tied(kind: str, dtype: type, seed: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    real, fake = rng.random((120, 10)), rng.random((90, 10))
    if kind == "binary":
        return (real > 0.5).astype(dtype), (fake > 0.4).astype(dtype)
    steps = {"bytes": 1.0, "halves": 0.5, "hundredths": 0.01, "far": 1.0}[kind]
    moved = 1000.0 if kind == "far" else 0.0
    return tuple((steps * np.floor(4 * side) + moved).astype(dtype) for side in (real, fake))  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["binary", "bytes", "halves", "hundredths", "far"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_equal_distances_are_equal(kind: str, dtype: type, k: int) -> None:
    """Of the definitions, on distances rounded to what they are exactly."""
    real, fake = tied(kind, dtype, seed=k)

    def distances(a: Array, b: Array) -> Array:
        return np.round(((a[:, None].astype(float) - b[None].astype(float)) ** 2).sum(axis=2), 9)

    own, crossed, made = distances(real, real), distances(fake, real), distances(fake, fake)
    np.fill_diagonal(own, np.inf)
    np.fill_diagonal(made, np.inf)
    reach, reach_fake = np.sort(own, axis=1)[:, k - 1], np.sort(made, axis=1)[:, k - 1]
    found = density_coverage(real, fake, k=k)
    assert found["density"] == pytest.approx((crossed < reach).sum(axis=1).mean() / k)
    assert found["coverage"] == pytest.approx((crossed.min(axis=0) < reach).mean())
    shares = precision_recall(real, fake, k=k)
    assert shares["precision"] == pytest.approx((crossed <= reach).any(axis=1).mean())
    assert shares["recall"] == pytest.approx((crossed <= reach_fake[:, None]).any(axis=0).mean())
    first = crossed.argmin(axis=1)
    authentic = crossed[np.arange(len(fake)), first] > np.sort(own, axis=1)[first, 0]
    assert authpct(real, fake)["authpct"] == pytest.approx(100 * authentic.mean())
    assert np.array_equal(nearest(fake, real, k=k)[1], np.argsort(crossed, axis=1, kind="stable")[:, :k])


@pytest.mark.parametrize("scale", [1e-25, 1e-3, 1.0, 1e20])
def test_no_scale_changes_a_manifold(scale: float) -> None:
    rng = np.random.default_rng(0)
    real, fake = rng.standard_normal((200, 16)), 0.9 * rng.standard_normal((150, 16)) + 0.1
    near = [side.astype(np.float32) for side in (real, fake)]
    far = [side * np.float32(scale) for side in near]
    for metric in (precision_recall, density_coverage, authpct):
        assert metric(*far) == pytest.approx(metric(*near), abs=1e-6)


def test_rounding_decides_no_border() -> None:
    """Of float32 features with a large mean, every comparison is that of exact distances."""
    rng = np.random.default_rng(0)
    real, fake = (rng.standard_normal((300, 8)) + 500.0 for _ in range(2))
    real, fake = real.astype(np.float32), fake.astype(np.float32)
    wide = real.astype(np.float64), fake.astype(np.float64)
    assert precision_recall(real, fake) == precision_recall(*wide)
    assert density_coverage(real, fake) == density_coverage(*wide)


# --- copies


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_copies_have_a_large_mifid(dtype: type) -> None:
    rng = np.random.default_rng(0)
    train = rng.standard_normal((300, 20)).astype(dtype)
    copies, fresh = train[:150], rng.standard_normal((150, 20)).astype(dtype)
    assert cosine_distance(train, copies) < 1e-14
    assert mifid(train, copies)["mifid"] > 1e6 * fd(train, copies)["fd"] > 0.0
    assert mifid(train, fresh)["mifid"] == pytest.approx(fd(train, fresh)["fd"])


def test_rows_of_zeros_hide_no_copies() -> None:
    rng = np.random.default_rng(0)
    train = rng.standard_normal((300, 20))
    generated = np.concatenate([train[:100], np.zeros((100, 20))])
    assert cosine_distance(train, generated) < 1e-14
    assert cosine_distance(np.concatenate([train, np.zeros((5, 20))]), train[:100]) < 1e-14
    with pytest.raises(ValueError, match="all features of fake are 0"):
        cosine_distance(train, np.zeros((5, 20)))
