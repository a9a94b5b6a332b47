"""Metrics of generated samples: known values, and mistakes that must be seen."""

from __future__ import annotations

import math

import numpy as np
import pytest

from repa_eval.errors import UserError
from repa_eval.metrics import fid
from repa_eval.metrics import inception_score as score
from repa_eval.metrics import precision_recall as pr
from repa_eval.metrics._registry import SAMPLE


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


# --- Frechet distance


def gaussian(d: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    root = normal(d, d, seed=seed)
    return normal(d, seed=seed + 100), root @ root.T


def test_frechet_closed_forms() -> None:
    one = np.ones((1, 1))
    assert fid.frechet_distance([0.0], 4.0 * one, [3.0], 25.0 * one) == pytest.approx(9.0 + (2.0 - 5.0) ** 2)
    a, b = np.array([1.0, 4.0, 9.0]), np.array([16.0, 0.25, 0.0])
    apart = float(np.square(np.sqrt(a) - np.sqrt(b)).sum())
    assert fid.frechet_distance(np.zeros(3), np.diag(a), np.zeros(3), np.diag(b)) == pytest.approx(apart)
    Q = np.linalg.qr(normal(3, 3))[0]  # covariances that commute without being diagonal
    turned = fid.frechet_distance(np.zeros(3), Q @ np.diag(a) @ Q.T, np.ones(3), Q @ np.diag(b) @ Q.T)
    assert turned == pytest.approx(apart + 3.0)


def test_frechet_is_symmetric_and_never_negative() -> None:
    a, b = gaussian(30, seed=1), gaussian(30, seed=2)
    assert fid.frechet_distance(*a, *b) == pytest.approx(fid.frechet_distance(*b, *a), rel=1e-10)
    values = [fid.frechet_distance(*pair, *pair) for pair in (gaussian(d, seed=d) for d in range(2, 40))]
    assert all(0.0 <= value < 1e-8 for value in values)


@pytest.mark.parametrize("rank", [0, 1, 10, 29])
def test_frechet_of_singular_covariances(rank: int) -> None:
    rows = normal(30, 30, seed=3)[:, :rank]
    singular, full = (np.zeros(30), rows @ rows.T), gaussian(30, seed=4)
    assert fid.frechet_distance(*singular, *singular) == pytest.approx(0.0, abs=1e-4)
    forth, back = fid.frechet_distance(*singular, *full), fid.frechet_distance(*full, *singular)
    assert forth == pytest.approx(back, rel=1e-6)
    assert math.isfinite(forth)
    assert forth > 1.0


def test_frechet_paths_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = gaussian(20, seed=5), gaussian(20, seed=6)
    usual = fid.frechet_distance(*a, *b)
    eigh = fid.linalg.eigh

    def refuse(*args: np.ndarray, **options: object) -> object:
        if options.get("type") == 2:
            raise fid.linalg.LinAlgError("not positive definite")
        return eigh(*args, **options)

    monkeypatch.setattr(fid.linalg, "eigh", refuse)
    assert fid.frechet_distance(*a, *b) == pytest.approx(usual, rel=1e-10)


def test_fd_of_features() -> None:
    x = normal(400, 6)
    assert fid.fd(x, x)["fd"] == pytest.approx(0.0, abs=1e-10)
    assert fid.fd(x, x + 2.0)["fd"] == pytest.approx(6 * 4.0)
    assert fid.fd(x, 3.0 * x)["fd"] == pytest.approx(4.0 * np.cov(x.T).trace() + 4.0 * np.square(x.mean(0)).sum())
    assert fid.fd(x[:4], normal(5, 6, seed=1))["fd"] > 0.0  # fewer samples than features


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((np.zeros(2), np.eye(3), np.zeros(3), np.eye(3)), r"mu1 \(2,\) and sigma1 \(3, 3\); needed are"),
        ((np.zeros(2), np.eye(2), np.zeros(3), np.eye(3)), "mu1 has 2 entries and mu2 3"),
        ((np.zeros(2), np.eye(2), np.zeros(2), np.full((2, 2), np.nan)), "mu2 or sigma2 holds NaN or infinity"),
    ],
)
def test_frechet_bad_input(given: tuple[np.ndarray, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fid.frechet_distance(*given)


def test_moments_equal_numpy_even_far_from_zero() -> None:
    x = 1e4 + normal(1300, 5)
    seen = fid.moments(x)
    np.testing.assert_allclose(seen.mean, x.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(seen.covariance, np.cov(x, rowvar=False), rtol=1e-9, atol=1e-10)
    assert seen.n == 1300


def test_merged_moments_equal_all_at_once() -> None:
    x = normal(1500, 5) + 3.0
    whole, merged = fid.moments(x), fid.Moments()
    for part in (x[:100], x[100:1101], x[1101:1102], x[1102:]):
        merged.merge(fid.moments(part))
    merged.merge(fid.Moments())
    assert merged.n == whole.n
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-13)
    np.testing.assert_allclose(merged.m2, whole.m2, rtol=1e-11, atol=1e-9)
    merged.update(x)  # goes on after a merge
    assert merged.n == 3000
    again = fid.Moments(whole.n, whole.mean, whole.m2)  # as read from a file
    assert np.array_equal(again.covariance, whole.covariance)


@pytest.mark.parametrize("size", [1, 64, 512, 700])
def test_moments_do_not_depend_on_the_batch_size(size: int) -> None:
    x = normal(1100, 4).astype(np.float32)
    whole, seen = fid.moments(x), fid.Moments()
    for start in range(0, len(x), size):
        batch = x[start : start + size].copy()
        seen.update(batch)
        batch[:] = np.nan  # a loader may reuse its buffer
        assert seen.mean.shape == (4,)  # reading in between changes nothing
    assert np.array_equal(seen.mean, whole.mean)
    assert np.array_equal(seen.m2, whole.m2)


def test_moments_bad_input() -> None:
    seen = fid.Moments()
    with pytest.raises(UserError, match="there are no features yet"):
        _ = seen.mean
    seen.update(np.empty((0, 4)))
    seen.update(normal(1, 4))
    with pytest.raises(UserError, match="needs at least 2 samples; given is 1"):
        _ = seen.covariance
    with pytest.raises(UserError, match="features have 5 columns; those before had 4"):
        seen.update(normal(3, 5))
    with pytest.raises(UserError, match="features has NaN or infinity in 1 of 2 rows"):
        seen.update(np.array([[1.0, 2.0, 3.0, 4.0], [np.inf, 0.0, 0.0, 0.0]]))


# --- inception score


def test_inception_score_bounds() -> None:
    classes = 7
    sure = 1e4 * np.eye(classes)[np.arange(700) % classes]
    for value in (score.inception_score_adm(sure), *score.inception_score(None, sure).values()):
        assert value == pytest.approx(classes)
    assert score.inception_score_torch_fidelity(sure, splits=1) == pytest.approx((classes, 0.0))
    assert score.inception_score_adm(np.zeros((700, classes))) == pytest.approx(1.0)
    assert score.inception_score_adm(np.tile(sure[:1], (700, 1))) == pytest.approx(1.0)  # sure, but all of one class
    assert 1.0 < score.inception_score_adm(normal(700, classes)) < classes


def test_inception_score_splits() -> None:
    ordered = 1e4 * np.eye(4)[np.repeat(np.arange(4), 100)]  # sorted by class
    assert score.inception_score_adm(ordered) == pytest.approx(4.0)
    assert score.inception_score_adm(ordered, split_size=100) == pytest.approx(1.0)  # ADM does not shuffle
    assert score.inception_score_torch_fidelity(ordered, splits=4, shuffle=False)[0] == pytest.approx(1.0)
    assert score.inception_score_torch_fidelity(ordered, splits=4)[0] > 3.5
    tail = np.concatenate([ordered, ordered[:3]])  # 403: ADM's last split has 3 samples, dgm-eval drops them
    assert score.inception_score_adm(tail, split_size=400) == pytest.approx((4.0 + 1.0) / 2)
    assert score.inception_score_dgm(ordered, splits=1)[0] == pytest.approx(4.0)
    assert score.inception_score_dgm(tail, splits=2) != score.inception_score_torch_fidelity(tail, splits=2)
    with pytest.raises(UserError, match=r"splits=500: allowed are 1\.\.400"):
        score.inception_score_torch_fidelity(ordered, splits=500)
    with pytest.raises(UserError, match="split_size=0"):
        score.inception_score_adm(ordered, split_size=0)


# --- precision and recall


def modes(*centres: float, n: int = 150, seed: int = 0) -> np.ndarray:
    """n points about each of the centres, which lie far from each other on the first axis."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.standard_normal((n, 3)) + np.array([centre, 0.0, 0.0]) for centre in centres])


def test_precision_and_recall_point_the_right_way() -> None:
    both = modes(0.0, 100.0)
    dropped = pr.precision_recall(both, modes(0.0, seed=1))
    assert dropped["precision"] > 0.8
    assert 0.4 < dropped["recall"] < 0.51
    invented = pr.precision_recall(modes(0.0), modes(0.0, 100.0, seed=1))
    assert 0.4 < invented["precision"] < 0.51
    assert invented["recall"] > 0.8
    assert pr.precision_recall(both, both) == {"precision": 1.0, "recall": 1.0}
    assert pr.precision_recall(both, both + 1e4) == {"precision": 0.0, "recall": 0.0}


def test_the_border_is_inside_and_self_is_no_neighbour() -> None:
    real = np.array([[0.0], [1.0], [2.0], [3.0]])
    assert pr.radii(real, ks=(1, 2)).tolist() == [[1.0, 4.0], [1.0, 1.0], [1.0, 1.0], [1.0, 4.0]]
    fake = np.array([[4.0], [4.25], [40.0], [80.0]])
    assert pr.precision_recall(real, fake, k=1)["precision"] == 0.25
    assert pr.precision_recall(real, fake, k=3)["precision"] == 0.5
    assert pr.precision_recall(fake, real, k=1)["recall"] == 0.25  # the same ball, now of the generated set


def test_several_k_at_once_equal_one_by_one() -> None:
    real, fake = normal(90, 4), 0.8 * normal(70, 4, seed=1)
    precision, recall = pr.precision_recall_at(real, fake, ks=(5, 1, 3))
    single = [pr.precision_recall(real, fake, k=k) for k in (5, 1, 3)]
    assert precision.tolist() == [value["precision"] for value in single]
    assert recall.tolist() == [value["recall"] for value in single]
    assert precision[0] > precision[1]


def test_realism_is_inside_or_outside_as_precision_says() -> None:
    real, fake = normal(90, 4), 1.5 * normal(70, 4, seed=1)
    value, index = pr.realism(real, fake)
    assert (value >= 1.0).mean() == pytest.approx(pr.precision_recall(real, fake)["precision"], abs=0.02)
    apart = np.linalg.norm(fake[:, None] - real[None], axis=2)
    assert np.array_equal(index, apart.argmin(axis=1))


def test_precision_recall_is_exact_far_from_zero_in_float32() -> None:
    real, fake = normal(200, 8), 1.2 * normal(150, 8, seed=1)
    far = (100.0 + 0.1 * real).astype(np.float32), (100.0 + 0.1 * fake).astype(np.float32)
    near, moved = pr.precision_recall(real, fake), pr.precision_recall(*far)
    assert moved == pytest.approx(near, abs=0.011)


@pytest.mark.parametrize(
    ("real", "fake", "message"),
    [
        (normal(9, 4), normal(9, 5), "real has 4 features and fake 5; extract both with the same network"),
        (normal(9, 4), normal(3, 4), "k=3 neighbours need more than 3 samples; given are 3"),
        (normal(9, 4), np.full((9, 4), np.nan), "fake has NaN or infinity in 9 of 9 rows, first in row 0"),
        (normal(9), normal(9, 4), r"real has shape \(9,\); needed is a matrix"),
    ],
)
def test_precision_recall_bad_input(real: np.ndarray, fake: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pr.precision_recall(real, fake)


def test_sample_metrics_are_registered_with_what_they_need() -> None:
    needs = {name: metric.needs for name, metric in SAMPLE.items()}
    expected = {"fd": "features", "inception_score": "logits", "precision_recall": "features"}
    assert expected.items() <= needs.items()
    x = normal(30, 5)
    keys = {name: list(SAMPLE.get(name).function(x, x)) for name in expected}
    assert keys == {"fd": ["fd"], "inception_score": ["is"], "precision_recall": ["precision", "recall"]}
