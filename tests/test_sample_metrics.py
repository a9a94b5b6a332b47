"""Metrics of generated samples: known values, and mistakes that must be seen."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import linregress
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

import published_variants
from repa_eval.errors import UserError
from repa_eval.evaluation.evaluator_rules import PROTOCOLS, protocol_named
from repa_eval.interfaces.metric import SAMPLE
from repa_eval.metrics import fid
from repa_eval.metrics import inception_score as score
from repa_eval.metrics import precision_recall as pr
from repa_eval.metrics.authpct import authpct
from repa_eval.metrics.cmmd import cmmd
from repa_eval.metrics.density_coverage import density_coverage, prdc
from repa_eval.metrics.fd_infinity import extrapolated, fd_infinity, sizes_of
from repa_eval.metrics.kid import kid, kid_subsets
from repa_eval.metrics.kid_unbiased import kid_unbiased
from repa_eval.metrics.memorisation import cell_scores, memorisation
from repa_eval.metrics.mifid import mifid
from repa_eval.metrics.realism import realism_scores
from repa_eval.metrics.shared import manifold
from repa_eval.metrics.shared.mmd import Kernel, kernel_sums, polynomial, rbf, subset_estimates
from repa_eval.metrics.vendi import vendi, vendi_score


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
    monkeypatch.setattr(fid.linalg.lapack, "dpotrf", lambda matrix, **_: (matrix, 1))  # not positive definite
    assert fid.frechet_distance(*a, *b) == pytest.approx(usual, rel=1e-10)


def test_fd_of_features() -> None:
    x = normal(400, 6)
    assert fid.fd(x, x)["fd"] == pytest.approx(0.0, abs=1e-10)
    assert fid.fd(x, x + 2.0)["fd"] == pytest.approx(6 * 4.0)
    assert fid.fd(x, 3.0 * x)["fd"] == pytest.approx(4.0 * np.cov(x.T).trace() + 4.0 * np.square(x.mean(0)).sum())
    assert fid.fd(x[:4], normal(5, 6, seed=1))["fd"] > 0.0  # fewer samples than features


@pytest.mark.parametrize("kind", [torch.float8_e5m2, torch.float8_e4m3fn, torch.bfloat16])
def test_a_covariance_may_be_rounded(kind: torch.dtype) -> None:
    x = normal(16, 64)  # of rank 15: rounding makes its eigenvalues negative
    mean, cov = x.mean(axis=0), np.cov(x.T)
    rounded = torch.from_numpy(cov).float().to(kind).double().numpy()
    assert np.linalg.eigvalsh(rounded).min() < -1e-3
    assert fid.frechet_distance(mean, cov, mean, rounded) < 0.2 * np.trace(cov)
    assert fid.frechet_distance(mean, rounded, mean, cov) < 0.2 * np.trace(cov)


def test_singular_covariances_are_covariances() -> None:
    apart = np.diag([1.0, 0.0]), np.diag([0.0, 1.0])
    assert fid.frechet_distance(np.zeros(2), apart[0], np.zeros(2), apart[1]) == pytest.approx(2.0)
    assert fid.frechet_distance(np.zeros(2), np.zeros((2, 2)), np.zeros(2), apart[1]) == pytest.approx(1.0)
    turn = np.array([[0.8, 0.6], [-0.6, 0.8]])
    first, second = (turn @ part @ turn.T for part in apart)
    assert fid.frechet_distance(np.zeros(2), first, np.zeros(2), second) == pytest.approx(2.0, abs=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((np.zeros(2), np.eye(3), np.zeros(3), np.eye(3)), r"mu1 \(2,\) and sigma1 \(3, 3\); needed are"),
        ((np.zeros(2), np.eye(2), np.zeros(3), np.eye(3)), "mu1 has 2 entries and mu2 3"),
        ((np.zeros(2), np.eye(2), np.zeros(2), np.full((2, 2), np.nan)), "mu2 or sigma2 holds NaN or infinity"),
        ((np.zeros(2), np.array([[1, 0.5], [0, 1]]), np.zeros(2), np.eye(2)), "sigma1 is no covariance: it is not sym"),
        ((np.zeros(2), np.eye(2), np.zeros(2), np.diag([1.0, -1.0])), "sigma2 is no covariance: .* negative variances"),
        ((np.zeros(2), 3.0 - 2.0 * np.eye(2), np.zeros(2), np.eye(2)), "sigma1 .* it has negative eigenvalues"),
        ((np.zeros(2), np.eye(2), np.zeros(2), 3.0 - 2.0 * np.eye(2)), "sigma2 .* it has negative eigenvalues"),
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
    assert published_variants.inception_score_dgm(ordered, splits=1)[0] == pytest.approx(4.0)
    assert published_variants.inception_score_dgm(tail, splits=2) != score.inception_score_torch_fidelity(
        tail, splits=2
    )
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
    assert published_variants.radii(real, ks=(1, 2)).tolist() == [[1.0, 4.0], [1.0, 1.0], [1.0, 1.0], [1.0, 4.0]]
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


@pytest.mark.parametrize("block", [700, 7_000, 90_000])
def test_the_size_of_a_block_changes_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = normal(700, 4), 0.8 * normal(31, 4, seed=1)
    apart = np.linalg.norm(real[:, None] - real[None], axis=2) ** 2
    radii, seen, scores = (
        published_variants.radii(real, ks=(3, 1)),
        pr.precision_recall(real, fake),
        published_variants.realism(real, fake),
    )
    assert radii == pytest.approx(np.sort(apart, axis=1)[:, [3, 1]])  # place 0 is the point itself
    monkeypatch.setattr(manifold, "BLOCK", block)
    assert published_variants.radii(real, ks=(3, 1)) == pytest.approx(radii)
    assert pr.precision_recall(real, fake) == seen
    again = published_variants.realism(real, fake)
    assert again[0] == pytest.approx(scores[0])
    assert np.array_equal(again[1], scores[1])


def test_realism_is_inside_or_outside_as_precision_says() -> None:
    real, fake = normal(90, 4), 1.5 * normal(70, 4, seed=1)
    value, index = published_variants.realism(real, fake)
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
        (normal(9), normal(9, 4), r"real has shape \(9,\); needed are the axes"),
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


# --- a reference factored once, moments in blocks


def test_a_reference_that_is_factored_once_gives_the_same_bits() -> None:
    for d in (5, 64, 90):
        reference = fid.Gaussian(*gaussian(d, seed=d))
        for seed in (1, 2):
            other = gaussian(d, seed=seed)
            assert reference.distance(*other) == fid.frechet_distance(*gaussian(d, seed=d), *other)


def test_the_factored_path_is_scipys_generalised_problem() -> None:
    """Bit-equal to eigh(type=2, driver="gv"), which earlier versions called: old numbers stay what they were."""
    (m1, s1), (m2, s2) = gaussian(64, seed=1), gaussian(64, seed=2)
    values = fid.linalg.eigh((s2 + s2.T) / 2, (s1 + s1.T) / 2, type=2, eigvals_only=True, driver="gv")
    expected = float(np.square(m1 - m2).sum()) + float(np.trace(s1) + np.trace(s2)) - 2 * float(np.sqrt(values).sum())
    assert fid.frechet_distance(m1, s1, m2, s2) == expected


def test_moments_wider_than_a_block() -> None:
    x = 5.0 + normal(1300, 700)
    seen = fid.Moments()
    for start in range(0, 1300, 64):
        seen.update(x[start : start + 64])
    np.testing.assert_allclose(seen.covariance, np.cov(x, rowvar=False), atol=1e-12)
    assert np.array_equal(seen.m2, seen.m2.T)
    parts = fid.moments(x[:700])
    parts.merge(fid.moments(x[700:]))
    np.testing.assert_allclose(parts.m2, seen.m2, atol=1e-9)
    again = fid.Moments(seen.n, seen.mean, seen.m2)
    assert np.array_equal(again.covariance, seen.covariance)
    assert np.array_equal(fid.moments(x).m2, seen.m2)


def test_spatial_features_have_a_distance_of_their_own() -> None:
    x, y = normal(90, 6), 1.0 + normal(80, 6, seed=1)
    assert fid.sfd(x, y) == {"sfd": fid.fd(x, y)["fd"]}
    assert SAMPLE.get("sfd").needs == "spatial"
    assert fid.fd(fid.gaussian_of(x), fid.moments(y)) == fid.fd(x, y)


# --- standard errors: near the spread over fresh samples


def spread(metric: object, draw: object, suffix: str, rounds: int = 60) -> tuple[float, float]:
    """Spread of a metric over fresh sets of samples, and the mean of the errors that it states."""
    found = [metric(*draw(seed)) for seed in range(rounds)]
    stated = [values[f"{suffix}_stderr"] for values in found]
    return float(np.std([values[suffix] for values in found])), float(np.mean(stated))


def with_errors(name: str) -> object:
    entry = SAMPLE.get(name)

    def both(real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
        values = entry.function(real, fake)
        errors = {} if entry.stderr is None else entry.stderr(real, fake, values)
        return values | {f"{suffix}_stderr": error for suffix, error in errors.items()}

    return both


@pytest.mark.parametrize("missing", [0, 1])
def test_the_error_of_a_distance_is_that_of_leaving_one_out(missing: int) -> None:
    mix = np.array([[2.0, 0.5, 0.0], [0.0, 1.0, 0.3], [0.2, 0.0, 0.4]])
    mix[:missing] = 0.0  # the reference may lack a direction
    real = fid.gaussian_of(normal(400, 3) @ mix)
    fake = normal(300, 3, seed=1) * (1.5, 0.3, 0.8) + (0.5, 0.0, 0.0)
    without = [fid.moments(np.delete(fake, i, axis=0)) for i in range(len(fake))]
    values = np.array([real.distance(one.mean, one.covariance) for one in without])
    jackknife = math.sqrt((len(fake) - 1) * values.var())
    assert real.stderr(fake) == pytest.approx(jackknife, rel=0.03)


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("fd", "fd"), ("inception_score", "is"), ("kid_unbiased", "kid_unbiased"), ("cmmd", "cmmd"), ("vendi", "vendi")],
)
def test_standard_errors_are_the_spread_of_fresh_samples(name: str, suffix: str) -> None:
    fixed = normal(4000, 6, seed=1000)

    def draw(seed: int) -> tuple[np.ndarray, np.ndarray]:
        fresh = 0.7 * normal(300, 6, seed=seed) + 0.5
        return (fixed if name != "kid_unbiased" else normal(300, 6, seed=seed + 500)), fresh

    actual, stated = spread(with_errors(name), draw, suffix)
    assert stated == pytest.approx(actual, rel=0.35)


@pytest.mark.parametrize("suffix", ["density", "coverage"])
def test_errors_of_density_and_coverage_have_the_right_size(suffix: str) -> None:
    actual, stated = spread(
        density_coverage, lambda seed: (normal(300, 4, seed=seed + 99), normal(300, 4, seed=seed)), suffix, 30
    )
    assert 0.4 * actual < stated < 2.0 * actual


def test_errors_of_precision_and_recall_are_those_of_shares() -> None:
    real, fake = normal(200, 4), 1.2 * normal(100, 4, seed=1)
    values = with_errors("precision_recall")(real, fake)
    p, r = values["precision"], values["recall"]
    assert values["precision_stderr"] == pytest.approx(math.sqrt(p * (1 - p) / 100))
    assert values["recall_stderr"] == pytest.approx(math.sqrt(r * (1 - r) / 200))


def test_the_error_of_the_inception_score_is_over_splits_of_5000() -> None:
    logits = normal(5400, 5)
    errors = [with_errors("inception_score")(None, part)["is_stderr"] for part in (logits[:5000], logits[5000:])]
    assert with_errors("inception_score")(None, logits)["is_stderr"] == pytest.approx(math.hypot(*errors) / 2)


def test_the_error_of_authpct_is_that_of_a_share() -> None:
    values = with_errors("authpct")(normal(200, 4), 1.2 * normal(100, 4, seed=1))
    share = values["authpct"] / 100
    assert 0.2 < share < 0.8
    assert values["authpct_stderr"] == pytest.approx(100 * math.sqrt(share * (1 - share) / 100))


FEWEST = {  # (real, fake) rows that a metric can bear; one needs no real ones
    "authpct": (2, 1), "cmmd": (2, 2), "density_coverage": (6, 6), "fd": (2, 2), "fd_infinity": (2, 4),
    "inception_score": (0, 1), "kid": (2, 2), "kid_unbiased": (2, 2), "mifid": (2, 2), "precision_recall": (4, 4),
    "realism": (4, 1), "sfd": (2, 2), "sliced_wasserstein": (2, 2), "vendi": (0, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", FEWEST)
def test_the_fewest_samples_that_a_metric_bears(name: str) -> None:
    metric, (real, fake) = SAMPLE.get(name).function, FEWEST[name]
    assert set(metric(normal(real, 3), normal(fake, 3, seed=1))) >= set(SAMPLE.get(name).gives)
    with pytest.raises(UserError, match=r"at least|need more than"):
        metric(normal(max(real, 2), 3), normal(fake - 1, 3))
    if real:
        with pytest.raises(UserError, match=r"at least|need more than"):
            metric(normal(real - 1, 3), normal(fake, 3))


def test_the_fewest_samples_are_known_of_every_metric() -> None:
    assert {name for name in SAMPLE.names() if name != "memorisation"} == set(FEWEST)  # that one takes three sets


def test_a_distance_of_too_few_samples_states_no_error() -> None:
    assert "fd_stderr" not in with_errors("fd")(normal(100, 20), normal(39, 20, seed=1))
    assert with_errors("fd")(normal(100, 20), normal(40, 20, seed=1))["fd_stderr"] > 0.0


# --- kernel distances


def test_kernel_sums_equal_the_full_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(70, 5), 0.5 + normal(50, 5, seed=1)
    K, L, M = ((a @ b.T / 5 + 1.0) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    biased = K.mean() + L.mean() - 2 * M.mean()
    off = (K.sum() - np.trace(K)) / (70 * 69) + (L.sum() - np.trace(L)) / (50 * 49) - 2 * M.mean()
    monkeypatch.setattr("repa_eval.metrics.shared.kernels.BLOCK_ELEMENTS", 300)  # several blocks
    sums = kernel_sums(x, y, polynomial())
    assert sums.biased() == pytest.approx(biased, rel=1e-12)
    assert sums.unbiased() == pytest.approx(off, rel=1e-12)
    for estimate, error in ((sums.unbiased, sums.unbiased_stderr()), (sums.biased, sums.biased_stderr())):
        without = [getattr(kernel_sums(np.delete(x, i, 0), y, polynomial()), estimate.__name__)() for i in range(70)]
        other = [getattr(kernel_sums(x, np.delete(y, i, 0), polynomial()), estimate.__name__)() for i in range(50)]
        jackknife = 69 * np.var(without) + 49 * np.var(other)
        assert error == pytest.approx(math.sqrt(jackknife), rel=1e-6)


def test_kid_means_over_its_subsets() -> None:
    real, fake = normal(300, 8), 0.3 + normal(260, 8, seed=1)
    subsets = kid_subsets(real, fake, subsets=40, size=100)
    assert subsets.shape == (40,)
    assert subsets.mean() == pytest.approx(kid_unbiased(real, fake)["kid_unbiased"], abs=3 * subsets.std() / 6)
    assert kid(real, fake)["kid"] == pytest.approx(kid_subsets(real, fake, size=260).mean())
    assert "kid_stderr" not in kid(real, fake)  # every subset is the whole set
    first = kid_subsets(real, fake, subsets=3, size=100)
    assert not np.array_equal(first, kid_subsets(real, fake, subsets=3, size=100, real_first=True))
    assert not np.array_equal(first, kid_subsets(real, fake, subsets=3, size=100, seed=0))
    same = np.abs(kid_unbiased(normal(400, 8), normal(400, 8, seed=2))["kid_unbiased"])
    assert same < 3 * kid_unbiased(normal(400, 8), normal(400, 8, seed=2))["kid_unbiased_stderr"]


def test_cmmd_keeps_its_digits_in_float32() -> None:
    real, fake = normal(200, 16), 0.1 + normal(150, 16, seed=1)
    narrow = cmmd(real.astype(np.float32), fake.astype(np.float32))["cmmd"]
    assert narrow == pytest.approx(cmmd(real, fake)["cmmd"], rel=1e-5)
    assert cmmd(real, 7.0 * fake)["cmmd"] == pytest.approx(cmmd(real, fake)["cmmd"])  # rows of length 1
    unit = real / np.linalg.norm(real, axis=1, keepdims=True)
    assert kernel_sums(unit, unit, rbf(10.0)).biased() == pytest.approx(0.0, abs=1e-15)


# --- balls


def test_density_and_coverage_of_known_sets() -> None:
    real = np.arange(10.0)[:, None]
    assert prdc(real, real + 0.25, k=1)["density"] == pytest.approx(1.9)  # within 1 of two points, the last of one
    assert prdc(real, real[:5] + 0.25, k=1)["coverage"] == pytest.approx(0.6)
    assert prdc(real, real + 1e4, k=1)["density"] == 0.0
    some, others = normal(100, 6), 1.3 * normal(80, 6, seed=1)  # the usual k: 5 here, 3 for precision and recall
    assert density_coverage(some, others)["density"] == prdc(some, others, k=5)["density"]
    assert density_coverage(some, others)["density"] != prdc(some, others, k=3)["density"]
    assert pr.precision_recall(some, others) == pr.precision_recall(some, others, k=3)
    assert pr.precision_recall(some, others) != pr.precision_recall(some, others, k=5)
    on_the_border = np.array([[10.0], [20.0], [30.0]])
    assert prdc(real, on_the_border, k=1)["precision"] == 0.0
    assert pr.precision_recall(real, on_the_border, k=1)["precision"] == pytest.approx(1 / 3)


def test_all_five_numbers_point_the_right_way() -> None:
    both = modes(0.0, 100.0)
    dropped, invented = prdc(both, modes(0.0, seed=1)), prdc(modes(0.0), modes(0.0, 100.0, seed=1))
    assert dropped["precision"] > 0.8 > 0.6 > dropped["recall"]
    assert invented["recall"] > 0.8 > 0.6 > invented["precision"]
    assert dropped["coverage"] < 0.51 < invented["coverage"]
    assert invented["density"] < 0.6 < dropped["density"]
    assert realism_scores(both, modes(0.0, seed=1)).mean() > 10 * realism_scores(both, both + 50.0).mean()


def test_neighbours_are_those_of_all_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifold, "BLOCK", 2000)
    real, fake = normal(300, 5), 1.3 * normal(200, 5, seed=1)
    seen = manifold.balls(real, fake, k=3, border=True)
    expected = pr.precision_recall(real, fake)
    assert 0.2 < expected["precision"] < 0.9
    apart = np.linalg.norm(fake[:, None] - real[None], axis=2)
    reach = np.sort(np.linalg.norm(real[:, None] - real[None], axis=2), axis=1)[:, 3]
    assert (apart <= reach).any(axis=1).mean() == expected["precision"]
    assert pr.precision_recall(real, fake, device="cpu:0") == expected
    assert (seen.holding > 0).mean() == expected["precision"]
    assert seen.recalled.mean() == expected["recall"]
    distance, index = manifold.nearest(fake, real, k=4)
    apart = np.linalg.norm(fake[:, None] - real[None], axis=2)
    assert np.array_equal(index, np.argsort(apart, axis=1)[:, :4])
    np.testing.assert_allclose(distance, np.sort(apart, axis=1)[:, :4], rtol=1e-12)


# --- diversity and memorisation


def test_vendi_counts_what_is_different() -> None:
    kinds = np.eye(7)[np.arange(70) % 7]
    assert vendi(None, kinds)["vendi"] == pytest.approx(7.0)
    assert vendi(None, kinds[:1].repeat(9, 0))["vendi"] == pytest.approx(1.0)
    for q in (0.5, 1.0, 2.0, math.inf):
        assert vendi_score(kinds, q=q) == pytest.approx(7.0)
        assert vendi_score(3.0 * kinds, q=q) == pytest.approx(7.0)
    assert vendi_score(normal(5, 40)) <= 5.0
    assert list(published_variants.vendi_per_class(kinds, np.arange(70) % 7).values()) == pytest.approx([1.0] * 7)
    with pytest.raises(UserError, match="allowed are orders of 0"):
        vendi_score(kinds, q=-1.0)
    with pytest.raises(UserError, match="labels have shape"):
        published_variants.vendi_per_class(kinds, [1, 2])


def test_copies_are_noticed() -> None:
    train, fresh, held_out = normal(900, 5), normal(500, 5, seed=1), normal(600, 5, seed=2)
    copies = train[:500] + 0.01 * normal(500, 5, seed=3)
    assert authpct(train, copies)["authpct"] < 1.0 < 40.0 < authpct(train, fresh)["authpct"] < 60.0
    assert memorisation(train, copies, held_out)["ct"] < -10.0
    assert abs(memorisation(train, fresh, held_out)["ct"]) < 3.0
    assert memorisation(train, 3.0 * fresh, held_out)["ct"] > 3.0
    assert mifid(train, copies)["mifid"] > 100 * fid.fd(train, copies)["fd"]
    wide, far = normal(60, 90), normal(50, 90, seed=1)  # nothing is within 0.1 of another
    assert mifid(wide, far)["mifid"] == pytest.approx(fid.fd(wide, far)["fd"])
    few_samples = memorisation(train, fresh[:30], held_out)["ct"]
    assert math.isnan(few_samples)
    assert "no cell holds more than 20 samples" in few_samples.reason
    assert math.isfinite(memorisation(normal(300, 80), normal(200, 80, seed=1), normal(200, 80, seed=2))["ct"])


def test_a_cell_counts_with_more_than_20_samples() -> None:
    sides = (normal(50, 3), normal(40, 3, seed=1), normal(41, 3, seed=2))  # train, held-out, samples
    cells = [np.arange(len(side)) >= half for side, half in zip(sides, (25, 30, 20), strict=True)]
    assert set(cell_scores(sides, cells)) == {1}  # 20 samples in the first, 21 in the second
    assert set(cell_scores(sides, cells, least=19)) == {0, 1}
    assert cell_scores(sides, cells)[1][1] == 0.25  # the share of the held-out


def test_c_t_in_the_large() -> None:
    train, held_out, fake = normal(90, 70), normal(80, 70, seed=1), 1.1 * normal(85, 70, seed=2)
    reduced = PCA(64).fit(train)
    sides = [reduced.transform(side) for side in (train, held_out, fake)]
    grouped = KMeans(3, n_init=10, random_state=0).fit(sides[0])
    scores = cell_scores(sides, [grouped.predict(side) for side in sides])
    assert len(scores) >= 2
    value = sum(score * share for score, share in scores.values()) / sum(share for _, share in scores.values())
    assert memorisation(train, fake, held_out)["ct"] == pytest.approx(value, rel=1e-6)


def test_fd_infinity_is_a_fitted_line_at_zero() -> None:
    real, fake = fid.gaussian_of(normal(500, 4)), 1.3 * normal(300, 4, seed=1)
    draws = [np.random.default_rng(size).choice(300, size, replace=False) for size in (20, 40, 80, 150, 300)]
    found = extrapolated(real, fake, draws)
    values = [fid.fd(real, fid.moments(fake[draw]))["fd"] for draw in draws]
    line = linregress([1 / len(draw) for draw in draws], values)
    assert found["fd_infinity"] == pytest.approx(line.intercept, rel=1e-9)
    assert found["fd_infinity_stderr"] == pytest.approx(line.intercept_stderr, rel=1e-6)


def test_fd_infinity_takes_the_bias_of_few_samples_away() -> None:
    real, fake = normal(20_000, 8), normal(2000, 8, seed=1)
    value = fd_infinity(real, fake)
    assert fid.fd(real, fake)["fd"] > 0.01
    assert abs(value["fd_infinity"]) < 0.5 * fid.fd(real, fake)["fd"]
    assert abs(value["fd_infinity"]) < 4 * value["fd_infinity_stderr"]
    assert fd_infinity(real, fake) == value
    assert sizes_of(50_000).tolist()[::14] == [5000, 50_000]
    assert sizes_of(15, 3).tolist() == [2, 8, 15]


# --- what is declared


def test_warnings_where_n_is_too_small() -> None:
    said = {name: metric.warns(500, 300) for name, metric in SAMPLE.items() if metric.warns}
    assert {"kid", "density_coverage", "vendi", "authpct", "memorisation", "fd_infinity", "mifid"} <= set(said)
    assert all(said.values())
    assert not any(metric.warns(60_000, 300) for _, metric in SAMPLE.items() if metric.warns)


def test_every_number_has_a_definition_a_range_and_a_name_of_its_own() -> None:
    given = [suffix for _, metric in SAMPLE.items() for suffix in metric.gives]
    assert len(set(given)) == len(given)
    for name, metric in SAMPLE.items():
        assert metric.definition, name
        assert metric.range, name


def test_protocols() -> None:
    assert protocol_named("adm").function("inception_score") is score.inception_score
    ordered = 1e4 * np.eye(4)[np.repeat(np.arange(4), 100)]
    theirs = PROTOCOLS["torch-fidelity"].function("inception_score")(None, ordered)
    assert theirs["is"] == pytest.approx(score.inception_score_torch_fidelity(ordered)[0])
    assert theirs["is_stderr"] == pytest.approx(score.inception_score_torch_fidelity(ordered)[1] / math.sqrt(10))
    real, fake = normal(300, 5), normal(260, 5, seed=1)
    assert PROTOCOLS["clean"].function("kid")(real, fake)["kid"] == pytest.approx(
        kid_subsets(real, fake, seed=0).mean()
    )
    assert PROTOCOLS["clean"].without == {"sfd", "inception_score", "precision_recall"}
    with pytest.raises(UserError, match="unknown protocol 'amd'; did you mean 'adm'"):
        protocol_named("amd")


@pytest.mark.parametrize(("subsets", "size"), [(3, 4), (60, 30)], ids=["few pairs in subsets", "many"])
@pytest.mark.parametrize("kernel", [polynomial(), rbf(3.0)], ids=["polynomial", "rbf"])
def test_subsets_that_share_kernel_values_have_the_estimates_of_each_alone(
    subsets: int, size: int, kernel: Kernel
) -> None:
    generator = np.random.default_rng(5)
    x, y = generator.normal(size=(70, 6)), generator.normal(0.4, 1.2, size=(50, 6))
    draws = [np.array([generator.permutation(len(side))[:size] for _ in range(subsets)]) for side in (x, y)]
    alone = [kernel_sums(x[first], y[second], kernel).unbiased() for first, second in zip(*draws, strict=True)]
    np.testing.assert_allclose(subset_estimates(x, y, (draws[0], draws[1]), kernel), alone, rtol=1e-11, atol=1e-13)
