"""What every registered alignment metric promises; a new file in metrics/ is tested by being there."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repa_eval.errors import UserError
from repa_eval.metrics._kernels import hsic_biased, hsic_unbiased, normalise_rows
from repa_eval.metrics._registry import ALIGNMENT, AlignmentMetric
from repa_eval.metrics.cka import cka
from repa_eval.metrics.cknna import cknna

METRICS = dict(ALIGNMENT.items())
# Metrics that centre: a mean far larger than the spread costs them nothing. The others search neighbours by raw inner
# products, which such a mean dominates: its rounding in float32 changes the lists, by definition of these metrics.
CENTRING = ("cka", "cka_unbiased")

every_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS.keys())


def every_metric_declaring(property: str) -> pytest.MarkDecorator:
    """Parametrise over the metrics that declare a property: those that do not promise it are not asked for it."""
    declared = {name: getattr(metric, property) for name, metric in METRICS.items()}
    chosen = {name: METRICS[name] for name, value in declared.items() if value is not None and value is not False}
    assert len(chosen) >= len(METRICS) - 2, f"hardly any metric declares {property}"
    return pytest.mark.parametrize("metric", chosen.values(), ids=chosen.keys())


def related(n: int = 160, *, seed: int = 0, noise: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Two views (n, 24) and (n, 17) of the same 8 causes."""
    rng = np.random.default_rng(seed)
    causes = rng.standard_normal((n, 8))
    views = (causes @ rng.standard_normal((8, d)) + noise * rng.standard_normal((n, d)) for d in (24, 17))
    x, y = views
    return x, y


def rotation(d: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(1).standard_normal((d, d)))[0]


def test_all_metrics_of_the_house_are_registered() -> None:
    house = {"cka", "cka_unbiased", "cknna", "mutual_knn", "cycle_knn", "lcs_knn", "edit_distance_knn"}
    assert house <= set(METRICS)


@every_metric_declaring("best")
def test_best_value_for_equal_features(metric: AlignmentMetric) -> None:
    x, y = related()
    assert metric.function(x, x) == pytest.approx(metric.best, abs=1e-9)
    assert metric.function(x, y) < 0.95 * metric.best
    # Rows of length 1 bring in the published 1e-6 of the denominators.
    assert metric.function(normalise_rows(x), normalise_rows(x)) == pytest.approx(metric.best, abs=1e-4)


@every_metric
def test_symmetry_is_as_declared(metric: AlignmentMetric) -> None:
    x, y = related(noise=2.0)
    apart = abs(metric.function(x, y) - metric.function(y, x))
    assert (apart < 1e-9) == metric.symmetric


@every_metric_declaring("scale")
@pytest.mark.parametrize("factor", [1e-6, 1e-3, 1e3])
@pytest.mark.parametrize("unit_rows", [False, True])
def test_scale_changes_nothing(metric: AlignmentMetric, factor: float, unit_rows: bool) -> None:
    x, y = map(normalise_rows, related()) if unit_rows else related()
    value = metric.function(x, y)
    assert metric.function(factor * x, y) == pytest.approx(value, abs=1e-9)
    assert metric.function(factor * x, factor * y) == pytest.approx(value, abs=1e-9)


@every_metric_declaring("rotation")
def test_rotation_changes_nothing(metric: AlignmentMetric) -> None:
    x, y = related()
    turned = metric.function(x @ rotation(x.shape[1]), y @ rotation(y.shape[1]))
    assert turned == pytest.approx(metric.function(x, y), abs=1e-9)


@every_metric_declaring("permutation")
def test_order_of_samples_changes_nothing(metric: AlignmentMetric) -> None:
    x, y = related()
    order = np.random.default_rng(2).permutation(len(x))
    value = metric.function(x, y)
    assert metric.function(x[order], y[order]) == pytest.approx(value, abs=1e-9)
    assert abs(metric.function(x[order], y) - value) > 0.05  # the pairing itself matters


@every_metric_declaring("chance")
def test_independent_features_are_near_chance(metric: AlignmentMetric) -> None:
    rng = np.random.default_rng(3)
    x, y = (normalise_rows(rng.standard_normal((2000, d))) for d in (8, 12))
    assert metric.function(x, y) == pytest.approx(metric.chance, abs=0.1)


@every_metric
def test_float32_equals_float64(metric: AlignmentMetric) -> None:
    x, y = map(normalise_rows, related())
    narrow = metric.function(x.astype(np.float32), y.astype(np.float32))
    assert isinstance(narrow, float)
    assert narrow == pytest.approx(metric.function(x, y), abs=1e-4)


@pytest.mark.parametrize("name", CENTRING)
def test_a_large_mean_costs_no_digits(name: str) -> None:
    x, y = (100.0 + 0.1 * side / side.std() for side in related())
    metric = METRICS[name].function
    value = metric(x, y)
    assert value == pytest.approx(metric(x - 100.0, y - 100.0), abs=1e-9)
    assert metric(x.astype(np.float32), y.astype(np.float32)) == pytest.approx(value, abs=1e-4)
    # Each of these is lost by the Gram matrix of the features as they come, in float32:
    K, L = (side.astype(np.float32) @ side.astype(np.float32).T for side in (x, y))
    assert abs(hsic_unbiased(K, L) / math.sqrt(abs(hsic_unbiased(K, K) * hsic_unbiased(L, L))) - value) > 1e-3


@every_metric
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_constant_features_give_nan_without_a_warning(metric: AlignmentMetric, dtype: type) -> None:
    x = related()[0].astype(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for constant in (np.full((len(x), 5), 0.1, dtype), np.zeros((len(x), 5), dtype)):
            values = [metric.function(*pair) for pair in ((x, constant), (constant, x), (constant, constant))]
            assert all(math.isnan(value) for value in values)


@every_metric
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x[:-1], y), "x has 159 rows and y 160"),
        (
            lambda x, y: (x, np.where(y == y[3, 3], np.nan, y)),
            r"y has NaN or infinity in 1 of 160 rows, first in row 3",
        ),
        (lambda x, y: (x[0], y), r"x has shape \(24,\)"),
        (lambda x, y: (x[:1], y[:1]), "samples|rows"),
        (lambda x, y: (x.astype(str), y), "x has dtype <U32; allowed are float32 and float64"),
    ],
    ids=["unequal", "nan", "vector", "one sample", "text"],
)
def test_bad_input_is_told(metric: AlignmentMetric, change: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        metric.function(*change(*related()))  # type: ignore[operator]


@pytest.mark.parametrize("name", ["cknna", "mutual_knn", "cycle_knn", "lcs_knn", "edit_distance_knn"])
def test_too_few_samples_for_k(name: str) -> None:
    x, y = related(10)
    with pytest.raises(UserError, match="k=10 neighbours need more than 10 samples; given are 10"):
        METRICS[name].function(x, y)
    assert math.isfinite(METRICS[name].function(x, y, k=9))


def dense_cknna(x: np.ndarray, y: np.ndarray, *, k: int, unbiased: bool, eps: float) -> float:
    """CKNNA as defined, through N x N matrices; what the package computes from k entries a row."""
    grams, masks = [side @ side.T for side in (x, y)], []
    for gram in grams:
        similar = gram.copy()
        if unbiased:
            np.fill_diagonal(similar, -np.inf)
        masks.append(np.zeros_like(gram))
        np.put_along_axis(masks[-1], np.argsort(-similar, axis=1)[:, :k], 1.0, axis=1)
    hsic = hsic_unbiased if unbiased else hsic_biased
    both = masks[0] * masks[1]
    own = [hsic(mask * gram, mask * gram) for mask, gram in zip(masks, grams, strict=True)]
    if own[0] * own[1] < 0:
        return math.nan
    return hsic(both * grams[0], both * grams[1]) / (math.sqrt(own[0] * own[1]) + eps)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(data=st.data(), n=st.integers(5, 200), seed=st.integers(0, 999), unit=st.booleans(), unbiased=st.booleans())
def test_sparse_cknna_equals_the_dense_definition(
    data: st.DataObject, n: int, seed: int, unit: bool, unbiased: bool
) -> None:
    k = data.draw(st.integers(2, n - 1))
    x, y = map(normalise_rows, related(n, seed=seed)) if unit else related(n, seed=seed)
    dense = dense_cknna(x, y, k=k, unbiased=unbiased, eps=1e-6 if unit else 0.0)
    assert cknna(x, y, k=k, unbiased=unbiased) == pytest.approx(dense, rel=1e-9, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("n", [40, 160])
def test_cknna_is_nearly_symmetric_and_exactly_so_when_biased(n: int) -> None:
    x, y = related(n, noise=2.0)
    assert 1e-6 < abs(cknna(x, y, k=n // 4) - cknna(y, x, k=n // 4)) < 0.02
    assert cknna(x, y, k=n // 4, unbiased=False) == pytest.approx(cknna(y, x, k=n // 4, unbiased=False), abs=1e-12)


@pytest.mark.parametrize("n", [5, 40])
def test_cknna_of_all_neighbours_is_the_unbiased_cka(n: int) -> None:
    x, y = related(n)
    assert cknna(x, y, k=n - 1) == pytest.approx(cka(x, y, unbiased=True), abs=1e-12)
