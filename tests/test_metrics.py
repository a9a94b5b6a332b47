"""Kernels and alignment metrics: known values, and mistakes that must be seen."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import published_variants
from repa_eval.errors import UserError
from repa_eval.metrics import precision_recall as pr
from repa_eval.metrics.cka import cka
from repa_eval.metrics.cknna import cknna, cknna_centred_first
from repa_eval.metrics.cknna_erw import cknna_erw
from repa_eval.metrics.edit_distance_knn import _distances
from repa_eval.metrics.lcs_knn import _lengths, lcs_knn
from repa_eval.metrics.mutual_knn import mutual_knn
from repa_eval.metrics.rsa import rsa
from repa_eval.metrics.shared import kernels, tile_search
from repa_eval.metrics.shared.neighbours import neighbours
from repa_eval.metrics.shared.prepared import prepare
from repa_eval.metrics.svcca import svcca

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden" / "platonic"


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


# --- kernels


def test_nearest_is_the_sorted_inner_product_without_self() -> None:
    x = normal(50, 6)
    similar = x @ x.T
    np.fill_diagonal(similar, -np.inf)
    assert np.array_equal(kernels.nearest(x, k=7), np.argsort(-similar, axis=1)[:, :7])
    assert np.array_equal(kernels.nearest(x, k=7, with_self=True), np.argsort(-(x @ x.T), axis=1)[:, :7])


@pytest.mark.parametrize("n", [40, 48, 49, 64])
@pytest.mark.parametrize(("k", "with_self"), [(1, True), (3, False), (12, True)])
def test_tiles_find_what_a_whole_sort_finds(monkeypatch: pytest.MonkeyPatch, n: int, k: int, with_self: bool) -> None:
    monkeypatch.setattr(tile_search, "TILE", 16)
    monkeypatch.setattr(tile_search, "KEPT", 1)  # lists are merged along the way
    x, offsets = normal(n, 5), normal(n, seed=1)
    similar = x @ x.T + offsets
    if not with_self:
        np.fill_diagonal(similar, -np.inf)
    found = tile_search.largest_products(x, offsets, k=k, with_self=with_self)
    assert np.array_equal(found, np.argsort(-similar, axis=1)[:, :k])


def test_neighbours_are_searched_in_blocks() -> None:
    """In a process of its own, because what torch allocates is seen by the system only."""
    code = """
import resource, numpy as np, torch
from repa_eval.metrics.shared import kernels
x = np.random.default_rng(0).standard_normal((12000, 4)).astype(np.float32)
kernels.nearest(x[:3000], k=3)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = kernels.nearest(x, k=3)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
last = x @ x[-1]
last[-1] = -np.inf
assert found[-1].tolist() == np.argsort(-last)[:3].tolist()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 12000 * 12000 * 4 / 1024 / 4  # KB; a quarter of one float32 matrix n x n


def test_blocks_change_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(60, 5), normal(60, 7, seed=1)
    calls: list[Callable[[], object]] = [
        lambda: cknna(x, y, k=6),
        lambda: cka(x, y, kernel="rbf", unbiased=True, sigma=2.0),
        lambda: sorted(pr.precision_recall(x, y[:, :5]).items()),
        lambda: published_variants.realism(x, y[:, :5])[1].tolist(),
    ]
    whole = [call() for call in calls]
    monkeypatch.setattr(kernels, "BLOCK_ELEMENTS", 7 * 60)
    for call, expected in zip(calls, whole, strict=True):
        assert call() == pytest.approx(expected, abs=1e-12) if isinstance(expected, float) else call() == expected


def test_normalise_rows_keeps_the_dtype_and_survives_a_zero_row() -> None:
    x = np.array([[3.0, 4.0], [0.0, 0.0]], dtype=np.float32)
    unit = kernels.normalise_rows(x)
    assert unit.dtype == np.float32
    assert unit.tolist() == [[np.float32(0.6), np.float32(0.8)], [0.0, 0.0]]


def test_remove_outliers() -> None:
    x = np.arange(1.0, 21.0).reshape(2, 10) * np.array([[1.0], [-1.0]])
    assert np.abs(kernels.remove_outliers(x, q=0.5, exact=True)).max() == 11.0  # sorted |x| at int(0.5 * 20)
    assert np.abs(kernels.remove_outliers(x, q=0.5)).max() == (5.5 + 15.5) / 2  # mean of the rows' medians
    assert kernels.remove_outliers(x, q=0.5).min() == -10.5
    assert np.array_equal(kernels.remove_outliers(x, q=1.0), x)
    with pytest.raises(UserError, match="q=95: a quantile lies between 0 and 1"):
        kernels.remove_outliers(x, q=95)


def test_biased_hsic_is_the_trace_of_the_definition() -> None:
    K, L = normal(9, 9), normal(9, 9, seed=1)  # not symmetric
    H = np.eye(9) - 1 / 9
    assert published_variants.hsic_biased(K, L) == pytest.approx(np.trace(K @ H @ L @ H), rel=1e-12)


# --- CKA and CKNNA


@pytest.mark.parametrize("widths", [(3, 5), (90, 4), (70, 80)])
@pytest.mark.parametrize("unbiased", [False, True])
def test_both_forms_of_linear_cka_equal_the_dense_definition(widths: tuple[int, int], unbiased: bool) -> None:
    x, y = normal(40, widths[0]), normal(40, widths[1], seed=1)
    K, L = x @ x.T, y @ y.T
    hsic = published_variants.hsic_unbiased if unbiased else published_variants.hsic_biased
    dense = hsic(K, L) / math.sqrt(hsic(K, K) * hsic(L, L))
    assert cka(x, y, unbiased=unbiased) == pytest.approx(dense, abs=1e-12)


@pytest.mark.parametrize("unbiased", [False, True])
def test_rbf_cka_equals_the_dense_definition(unbiased: bool) -> None:
    x, y, sigma = normal(40, 3), normal(40, 5, seed=1), 2.5
    K, L = (np.exp(-np.square(side[:, None] - side[None]).sum(axis=2) / (2 * sigma**2)) for side in (x, y))
    hsic = published_variants.hsic_unbiased if unbiased else published_variants.hsic_biased
    root = math.sqrt(hsic(K, K) * hsic(L, L))
    assert cka(x, y, unbiased=unbiased, kernel="rbf", sigma=sigma) == pytest.approx(hsic(K, L) / root, abs=1e-12)
    published = cka(x, y, unbiased=unbiased, kernel="rbf", sigma=sigma, eps=1e-6)
    assert published == pytest.approx(hsic(K, L) / (root + 1e-6), abs=1e-12)


def test_a_ratio_that_does_not_exist_is_nan_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(kernels.ratio(1.0, -1.0, 1.0, eps=1e-6))
        assert math.isnan(kernels.ratio(0.0, 0.0, 1.0, eps=0.0))
        assert kernels.ratio(1.0, 4.0, 9.0, eps=0.5) == 1.0 / 6.5


def test_unbiased_cka_of_unrelated_wide_features_is_near_zero_and_biased_is_not() -> None:
    x, y = normal(100, 400), normal(100, 400, seed=1)
    assert abs(cka(x, y, unbiased=True)) < 0.05
    assert cka(x, y) > 0.7


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: cka(x, x, kernel="rbff"), "unknown kernel 'rbff'; did you mean 'rbf'"),
        (lambda x: cka(x, x, kernel="rbf", sigma=0.0), "sigma=0.0: the width of the rbf kernel must be positive"),
        (lambda x: cka(x[:3], x[:3], unbiased=True), "x has 3 rows; this metric needs at least 4 samples"),
        (lambda x: cknna(x, x, k=1), "k=1: at least 2 neighbours are needed"),
        (lambda x: cknna(x[:3], x[:3], k=2), "CKNNA needs at least 4 samples; given are 3"),
        (lambda x: cknna_centred_first(x, x, k=20), "k=20 neighbours need more than 20 samples"),
    ],
)
def test_wrong_options_are_told(call: Callable[[np.ndarray], float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call(normal(20, 3))


def wrong_cknna(x: np.ndarray, y: np.ndarray, *, mistake: str) -> float:
    """CKNNA at k=10 with one thing made wrong; with mistake "none" the definition."""
    k = 11 if "k+1" in mistake else 10
    grams = [side @ side.T for side in (x, y)]
    masks = []
    for gram in grams:
        similar = gram - np.diag(np.full(len(gram), 0.0 if "self" in mistake else np.inf))
        masks.append(np.zeros_like(gram))
        np.put_along_axis(masks[-1], np.argsort(-similar, axis=1)[:, :k], 1.0, axis=1)

    def hsic(K: np.ndarray, L: np.ndarray) -> float:
        n, off = len(K), 1.0 - np.eye(len(K))
        K, L = K * off, L * off
        product = (K * (L if "sum(K*L)" in mistake else L.T)).sum()
        return (product + K.sum() * L.sum() / ((n - 1) * (n - 2)) - 2 * (K @ L).sum() / (n - 2)) / (n * (n - 3))

    own = [hsic(mask * gram, mask * gram) for mask, gram in zip(masks, grams, strict=True)]
    both = masks[0] * masks[1]
    return hsic(both * grams[0], both * grams[1]) / (math.sqrt(own[0] * own[1]) + 1e-6)


@pytest.mark.parametrize("case", ["metrics_normalised", "metrics_raw", "metrics_unrelated"])
def test_golden_cknna_sees_each_mistake(case: str) -> None:
    text = json.loads((GOLDEN / f"{case}.json").read_text(encoding="utf-8"))
    arrays = np.load(GOLDEN / f"{case}.npz")
    x, y = arrays["A"].astype(np.float64), arrays["B"].astype(np.float64)
    if text["config"]["normalised_first"]:
        x, y = kernels.normalise_rows(x), kernels.normalise_rows(y)
    published, tol = float(arrays["cknna_k10"]), text["tol"]["*"]["rel"]

    def off(value: float) -> float:
        return abs(value - published) / abs(published)

    assert off(cknna(x, y)) < tol / 100
    assert off(wrong_cknna(x, y, mistake="none")) < tol / 100
    recorded = {name.removeprefix("cknna_k10: "): size for name, size in text["sensitivity"].items()}
    for mistake in ("sum(K*L) in place of", "self counted as", "k+1 neighbours"):
        size = next(size for name, size in recorded.items() if name.startswith(mistake))
        assert size > 10 * tol
        assert off(wrong_cknna(x, y, mistake=mistake)) == pytest.approx(size, rel=0.01), mistake


def test_cknna_keeps_the_official_constant_and_is_free_of_scale() -> None:
    """Without the 1e-6 the golden value of k=2 is missed by 1.8 times its tolerance; unscaled, it breaks scale."""
    arrays = np.load(GOLDEN / "metrics_normalised.npz")
    x, y = (kernels.normalise_rows(arrays[name]) for name in "AB")
    published = float(arrays["cknna_k2"])
    stretched = x * (1.0 + 0.002 * np.arange(len(x))[:, None] / len(x))  # lengths 1 to 1.002: no unit, no constant
    assert cknna(x, y, k=2) == pytest.approx(published, rel=1e-6)
    assert cknna(1e-3 * x, y, k=2) == pytest.approx(published, rel=1e-5)
    assert kernels.common_square(x) == pytest.approx(1.0, rel=1e-5)
    assert kernels.common_square(1e-3 * x) == pytest.approx(1e-6, rel=1e-5)
    assert kernels.common_square(stretched) == 0.0


def levenshtein(a: list[int], b: list[int]) -> int:
    if not a or not b:
        return len(a) + len(b)
    if a[0] == b[0]:
        return levenshtein(a[1:], b[1:])
    return 1 + min(levenshtein(a[1:], b), levenshtein(a, b[1:]), levenshtein(a[1:], b[1:]))


def common(a: list[int], b: list[int]) -> int:
    if not a or not b:
        return 0
    if a[0] == b[0]:
        return 1 + common(a[1:], b[1:])
    return max(common(a[1:], b), common(a, b[1:]))


def test_list_distances_equal_their_recursive_definitions() -> None:
    rng = np.random.default_rng(0)
    first, second = (np.stack([rng.permutation(7)[:5] for _ in range(60)]) for _ in range(2))
    pairs = list(zip(first.tolist(), second.tolist(), strict=True))
    assert _distances(first, second).tolist() == [levenshtein(a, b) for a, b in pairs]
    assert _lengths(first, second).tolist() == [common(a, b) for a, b in pairs]


# --- neighbours in float32, put in order by float64


@pytest.mark.parametrize("n", [60, 700])  # by products of all pairs, and by those of the candidates
def test_neighbours_in_float32_have_the_order_and_the_products_of_float64(n: int) -> None:
    x = kernels.normalise_rows((100.0 + 0.1 * normal(n, 30)).astype(np.float32))  # all cosines are .999999
    wide = x.astype(np.float64)
    similar = wide @ wide.T
    np.fill_diagonal(similar, -np.inf)
    order = np.argsort(-similar, axis=1, kind="stable")[:, :10]
    found = neighbours(x, k=10)
    assert np.array_equal(found.indices, order)
    assert found.products == pytest.approx(np.take_along_axis(similar, order, axis=1), rel=1e-14)
    narrow = x @ x.T
    np.fill_diagonal(narrow, -np.inf)
    assert (np.argsort(-narrow, axis=1, kind="stable")[:, :10] != order).mean() > 0.5  # what a plain search finds


def test_candidates_that_float32_cannot_order_are_not_cut_off() -> None:
    rng = np.random.default_rng(0)
    x = rng.choice([-1.0, 1.0], (700, 1)) * (1.0 + 1e-5 * rng.standard_normal((700, 7)))  # two tight clusters
    x = x.astype(np.float32)
    similar = x.astype(np.float64) @ x.T.astype(np.float64)
    np.fill_diagonal(similar, -np.inf)
    order = np.argsort(-similar, axis=1, kind="stable")[:, :10]
    assert np.array_equal(neighbours(x, k=10).indices, order)
    pairs = zip(order.tolist(), kernels.nearest(x, k=10).tolist(), strict=True)
    assert sum(set(true) != set(found) for true, found in pairs) > 50  # rows that lose one without spare candidates


@pytest.mark.parametrize("case", ["metrics_normalised", "metrics_raw", "metrics_unrelated"])
def test_golden_neighbours(case: str) -> None:
    text, arrays = json.loads((GOLDEN / f"{case}.json").read_text(encoding="utf-8")), np.load(GOLDEN / f"{case}.npz")
    x = kernels.normalise_rows(arrays["A"]) if text["config"]["normalised_first"] else arrays["A"]
    assert np.array_equal(neighbours(x, k=arrays["knn_A"].shape[1]).indices, arrays["knn_A"])


def test_equal_rows_take_the_lower_index_first() -> None:
    x = np.repeat(np.eye(3), 4, axis=0)
    assert neighbours(x, k=3).indices[[0, 3, 5]].tolist() == [[1, 2, 3], [0, 1, 2], [4, 6, 7]]


def test_neighbours_are_found_once_for_many_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[int] = []
    real = kernels.nearest
    monkeypatch.setattr(kernels, "nearest", lambda x, **given: (searched.append(len(x)), real(x, **given))[1])
    teacher, layers = prepare(normal(50, 6)), [prepare(normal(50, 4, seed=seed)) for seed in range(3)]
    for layer in layers:
        for metric in (cknna, mutual_knn, lcs_knn):
            metric(layer, teacher)
    assert len(searched) == 4


@pytest.mark.parametrize(
    ("metric", "options"),
    [
        (cknna, [{"k": k, "unbiased": unbiased} for k in (4, 9) for unbiased in (True, False)]),
        (cknna_erw, [{"k": k, "unbiased": unbiased} for k in (4, 9) for unbiased in (True, False)]),
        (mutual_knn, [{"k": 4}, {"k": 9}]),
        (rsa, [{"dissimilarity": "correlation"}, {"dissimilarity": "euclidean"}]),
        (svcca, [{"k": 2}, {"threshold": 0.8}, {"threshold": 0.99}]),
        (
            cka,
            [{"unbiased": unbiased} for unbiased in (True, False)]
            + [{"kernel": "rbf", "sigma": sigma, "unbiased": u} for sigma in (0.5, 2.0) for u in (True, False)]
            + [{"kernel": "rbf_median", "sigma": sigma} for sigma in (0.5, 2.0)],
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_kept_of_a_side_is_kept_per_option(metric: Any, options: list[dict[str, Any]]) -> None:
    x, y = normal(40, 6), normal(40, 5, seed=1)
    y += x[:, :5]
    expected = [metric(x, y, **given) for given in options]
    assert len(set(expected)) == len(options)
    first, second = prepare(x), prepare(y)
    assert [metric(first, second, **given) for given in options] == expected


def test_prepared_features_are_an_array_to_a_metric_that_knows_nothing_of_them() -> None:
    x = normal(5, 3)
    side = prepare(x)
    assert np.array_equal(np.asarray(side), x)
    assert np.asarray(side, dtype=np.float32).dtype == np.float32
    assert np.array(side, copy=True) is not side.values
    assert prepare(side) is side
