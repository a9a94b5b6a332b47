"""CKA of many layers and over batches; metrics of subspaces and distances: known values, options, bad input."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import linalg, spatial, stats

import published_variants
from repa_eval.errors import UserError
from repa_eval.metrics.cka import cka, cka_matrix
from repa_eval.metrics.cka_minibatch import MinibatchCKA, cka_minibatch
from repa_eval.metrics.cknna_erw import cknna_erw
from repa_eval.metrics.procrustes import procrustes
from repa_eval.metrics.pwcca import pwcca
from repa_eval.metrics.rsa import rsa
from repa_eval.metrics.shared import kernels
from repa_eval.metrics.shared.cca import thin_svd
from repa_eval.metrics.shared.checks import reason_of
from repa_eval.metrics.shared.prepared import prepare
from repa_eval.metrics.svcca import svcca


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


# --- CKA of many layers


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("widths", [(5, 7, 3), (90, 60, 80)], ids=["by features", "by Gram matrices"])
def test_cka_matrix_is_cka_of_every_pair(unbiased: bool, widths: tuple[int, ...], monkeypatch: Any) -> None:
    xs = [3.0 + normal(40, d, seed=i) * (i + 1) for i, d in enumerate(widths)]
    ys = [xs[1] @ normal(widths[1], 6), *xs[:1]]
    expected = [[cka(x, y, unbiased=unbiased) for y in ys] for x in xs]
    assert np.allclose(cka_matrix(xs, ys, unbiased=unbiased), expected, rtol=0, atol=1e-12)
    monkeypatch.setattr(kernels, "BLOCK_ELEMENTS", 7 * 40)
    assert np.allclose(cka_matrix(xs, ys, unbiased=unbiased), expected, rtol=0, atol=1e-12)


def test_cka_matrix_has_nan_where_a_layer_is_constant_and_tells_bad_layers() -> None:
    x, flat = normal(20, 3), np.full((20, 4), 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(cka_matrix([x, flat], [flat, x])).tolist() == [[True, False], [True, True]]
    with pytest.raises(UserError, match=r"xs\[0\] has 20 rows and ys\[1\] 19"):
        cka_matrix([x], [x, x[:-1]])
    with pytest.raises(UserError, match="needs layers on both sides; given are 0 and 1"):
        cka_matrix([], [x])


def test_median_width_is_that_of_all_pairs_with_the_diagonal() -> None:
    for n in (2, 3, 6, 7):
        x, y = normal(n, 3), normal(n, 5, seed=1)
        squares = [np.sort(np.square(s[:, None] - s[None]).sum(axis=2), axis=None)[(n * n - 1) // 2] for s in (x, y)]
        grams = [
            np.exp(-np.square(s[:, None] - s[None]).sum(axis=2) / (2 * 0.49 * square))
            for s, square in zip((x, y), squares, strict=True)
            if square > 0
        ]
        if len(grams) < 2:
            continue
        own = [published_variants.hsic_biased(K, K) for K in grams]
        dense = published_variants.hsic_biased(*grams) / math.sqrt(own[0] * own[1])
        assert cka(x, y, kernel="rbf_median", sigma=0.7) == pytest.approx(dense, abs=1e-12)


def test_more_samples_than_the_distances_have_room_for_are_told() -> None:
    x = np.arange(20_001.0)[:, None]
    with pytest.raises(UserError, match="the median distance of 20001 samples needs 2 GB"):
        cka(x, x, kernel="rbf_median")
    with pytest.raises(UserError, match="RSA of 20001 samples would sort 200020000 pairs"):
        rsa(x, x)


def test_minibatches_add_up_and_a_short_one_is_left_out() -> None:
    x, y = normal(70, 6), normal(70, 9, seed=1)
    y[:, :6] += x
    sums = np.zeros(3)
    for start in (0, 32):
        K, L = (side[start : start + 32] @ side[start : start + 32].T for side in (x, y))
        sums += [published_variants.hsic_unbiased(*pair) for pair in ((K, L), (K, K), (L, L))]
    expected = sums[0] / math.sqrt(sums[1] * sums[2])
    assert cka_minibatch(x[:67], y[:67], batch_size=32) == pytest.approx(expected, abs=1e-12)
    seen = MinibatchCKA()
    with pytest.raises(UserError, match="no batch of at least 4 samples yet"):
        seen.matrix()
    for start in (0, 32, 64):
        seen.update([x[start : min(start + 32, 67)]], [y[start : min(start + 32, 67)]])
    assert seen.skipped == 3
    assert seen.matrix().item() == pytest.approx(expected, abs=1e-12)
    assert cka_minibatch(x, y, batch_size=70) == pytest.approx(cka(x, y, unbiased=True), abs=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: cka_minibatch(x, x, batch_size=3), "batch_size=3: the unbiased HSIC needs batches of at least 4"),
        (lambda x: MinibatchCKA().update([x], [x[:-1]]), r"all of the same samples; given: \[19, 20\] rows"),
        (lambda x: MinibatchCKA().update([], [x]), "a batch needs layers on both sides"),
        (lambda x: svcca(x, x, k=4), "k=4 directions: the features have 3"),
        (lambda x: svcca(x, x, threshold=99), "threshold=99: the share of variance lies above 0 and at most at 1"),
        (lambda x: rsa(x, x, dissimilarity="cosine"), "unknown dissimilarity 'cosine'"),
        (lambda x: cknna_erw(x, x, k=1), "k=1: at least 2 neighbours are needed"),
    ],
)
def test_wrong_options_of_the_other_metrics_are_told(call: Callable[[np.ndarray], float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call(normal(20, 3))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_constant_layer_has_no_minibatch_cka(dtype: type) -> None:
    x, flat = normal(37, 3).astype(dtype), np.full((37, 4), 0.1, dtype)
    seen = MinibatchCKA()
    seen.update([x, flat], [x])
    assert np.isnan(seen.matrix()).tolist() == [[False], [True]]


def test_a_minibatch_of_float32_keeps_the_digits_of_a_large_mean() -> None:
    x, y = normal(60, 5), normal(60, 6, seed=1)
    y[:, :5] += x
    x, y = 1000.0 + 0.05 * x, 1000.0 + 0.05 * y
    x, y = x.astype(np.float32), y.astype(np.float32)
    narrow, wide = MinibatchCKA(), MinibatchCKA()
    narrow.update([x], [y])
    wide.update([x.astype(np.float64)], [y.astype(np.float64)])
    assert narrow.matrix().item() == pytest.approx(wide.matrix().item(), abs=1e-5)


def test_other_layers_than_before_are_told() -> None:
    seen = MinibatchCKA()
    seen.update([normal(8, 2)], [normal(8, 3)])
    with pytest.raises(UserError, match=r"this batch has \(2, 1\) layers, those before had \(1, 1\)"):
        seen.update([normal(8, 2), normal(8, 2)], [normal(8, 3)])


# --- the metrics of subspaces and distances


def test_cca_of_a_linear_map_is_one_and_rank_counts() -> None:
    x = normal(200, 6)
    y = np.concatenate([x @ normal(6, 4, seed=1), np.full((200, 1), 3.0)], axis=1)  # rank 4 of 5 columns
    assert published_variants.cca_correlations(x, y) == pytest.approx(np.ones(4), abs=1e-12)
    assert svcca(x, y, threshold=1.0) == pytest.approx(1.0, abs=1e-12)
    assert pwcca(x, y) == pytest.approx(1.0, abs=1e-12)


def test_pwcca_weights_the_side_of_lower_rank_wherever_it_is() -> None:
    x, y = normal(200, 6), normal(200, 4, seed=1)
    y[:, :2] += x[:, :2] * [1.0, 3.0]
    assert pwcca(y, x) == pytest.approx(pwcca(x, y), abs=1e-12)
    assert abs(pwcca(x[:, :4], y) - pwcca(y, x[:, :4])) > 1e-4


def test_directions_of_rounding_are_no_directions() -> None:
    x = (100.0 + normal(400, 6)).astype(np.float32)
    x[:, 5] = x[:, :5].mean(axis=1)  # but for its rounding
    assert len(thin_svd(prepare(x))[1]) == 5
    assert len(thin_svd(prepare(x.astype(np.float64)))[1]) == 6  # in float64 these last digits count


def test_cca_of_fewer_samples_than_features_is_one_whatever_they_are() -> None:
    assert svcca(normal(20, 60), normal(20, 50, seed=1), threshold=1.0) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("widths", [(6, 4), (90, 70)])
def test_procrustes_is_the_distance_that_the_best_rotation_leaves(widths: tuple[int, int]) -> None:
    x, y = normal(40, widths[0]), normal(40, widths[1], seed=1)
    a, b = (side - side.mean(axis=0) for side in (x, y))
    a, b = a / np.linalg.norm(a), np.pad(b / np.linalg.norm(b), ((0, 0), (0, widths[0] - widths[1])))
    turned = a @ linalg.orthogonal_procrustes(a, b)[0]
    assert published_variants.procrustes_distance(x, y) == pytest.approx(np.linalg.norm(turned - b), abs=1e-12)
    assert procrustes(x, y) == pytest.approx(1.0 - published_variants.procrustes_distance(x, y) ** 2 / 2.0, abs=1e-12)


@pytest.mark.parametrize("dissimilarity", ["correlation", "euclidean"])
def test_rsa_is_spearman_of_the_upper_triangles(dissimilarity: str) -> None:
    x, y = normal(30, 5), normal(30, 4, seed=1)
    pairs = [spatial.distance.pdist(side, dissimilarity) for side in (x, y)]
    assert rsa(x, y, dissimilarity=dissimilarity) == pytest.approx(stats.spearmanr(*pairs).statistic, abs=1e-12)


def test_equal_dissimilarities_share_their_rank() -> None:
    """On whole numbers with mean 0 many distances are exactly equal."""
    half = np.random.default_rng(0).integers(-1, 2, (20, 3)).astype(np.float64)
    x, y = np.concatenate([half, -half]), normal(40, 4)
    pairs = [spatial.distance.pdist(side) for side in (x, y)]
    expected = stats.spearmanr(np.round(pairs[0], 9), pairs[1]).statistic
    assert rsa(x, y, dissimilarity="euclidean") == pytest.approx(expected, abs=1e-12)


def test_rsa_of_one_feature_is_nan_with_its_reason() -> None:
    value = rsa(normal(9, 1), normal(9, 4))
    assert math.isnan(value)
    assert reason_of(value) == "all dissimilarities of a side are equal"


def test_reasons_of_a_ratio_that_does_not_exist() -> None:
    assert "different signs" in str(reason_of(kernels.ratio(1.0, -1.0, 1.0, eps=1e-6)))
    assert "sees no differences" in str(reason_of(kernels.ratio(0.0, 0.0, 1.0, eps=0.0)))


def test_cknna_erw_has_its_constants() -> None:
    """The 1e-10 under the root and the lists without self, in the words of the definition."""
    x, y = (kernels.normalise_rows(normal(50, d, seed=d)) for d in (4, 6))
    grams = [side @ side.T - 2.0 * np.eye(50) for side in (x, y)]
    masks = [gram >= np.sort(gram, axis=1)[:, -5:][:, :1] for gram in grams]
    K, L = ((gram * masks[0] * masks[1]) for gram in grams)
    H = np.eye(50) - 1 / 50
    xy, xx, yy = (np.trace(a @ H @ b @ H) / 50**2 for a, b in ((K, L), (K, K), (L, L)))
    assert cknna_erw(x, y, k=5) == pytest.approx(xy / math.sqrt(xx * yy + 1e-10), abs=1e-12)
    assert abs(xy / math.sqrt(xx * yy) - xy / math.sqrt(xx * yy + 1e-10)) > 1e-8
