"""What every registered alignment metric promises; a new file in metrics/ is tested by being there."""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import published_variants
from repa_eval.commands.shared.metric_words import metric_words
from repa_eval.errors import UserError
from repa_eval.interfaces.metric import ALIGNMENT, SAMPLE, SPATIAL, AlignmentMetric, alignment_metric, sample_metric
from repa_eval.metrics.cka import cka
from repa_eval.metrics.cknna import cknna
from repa_eval.metrics.shared import prepared
from repa_eval.metrics.shared.checks import Undefined, reason_of
from repa_eval.metrics.shared.kernels import normalise_rows
from repa_eval.metrics.shared.prepared import prepare

METRICS = dict(ALIGNMENT.items())
DOCS = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"
WITH_NEIGHBOURS = ["cknna", "cknna_erw", "mutual_knn", "cycle_knn", "lcs_knn", "edit_distance_knn"]
# The declared exceptions, once more: a property that a new metric drops, or an old one loses, has to be written here.
EXCEPTIONS = {
    "best": {"cycle_knn"},
    "chance": {"cknna_erw", "cka_rbf_fixed"},
    "symmetric": {"cknna", "cycle_knn", "pwcca"},
    "scale": {"cka_rbf_fixed"},
    "rotation": {"pwcca", "rsa"},
    "shift": {*WITH_NEIGHBOURS, "rsa"},
    "permutation": {"cka_minibatch"},
}

every_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS.keys())


def every_metric_declaring(property: str) -> pytest.MarkDecorator:
    """Parametrise over the metrics that declare a property: those that do not promise it are not asked for it."""
    declared = {name: getattr(metric, property) for name, metric in METRICS.items()}
    chosen = {name: METRICS[name] for name, value in declared.items() if value is not None and value is not False}
    return pytest.mark.parametrize("metric", chosen.values(), ids=chosen.keys())


def related(
    n: int = 160, *, seed: int = 0, noise: float = 0.5, widths: tuple[int, int] = (24, 17)
) -> tuple[np.ndarray, np.ndarray]:
    """Two views (n, 24) and (n, 17) of the same 8 causes."""
    rng = np.random.default_rng(seed)
    causes = rng.standard_normal((n, 8))
    views = (causes @ rng.standard_normal((8, d)) + noise * rng.standard_normal((n, d)) for d in widths)
    x, y = views
    return x, y


def far_off(n: int = 160) -> tuple[np.ndarray, np.ndarray]:
    """Features of mean 100 and scale 0.1."""
    x, y = (100.0 + 0.1 * side / side.std() for side in related(n))
    return x, y


def rotation(d: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(1).standard_normal((d, d)))[0]


def test_all_metrics_of_the_house_are_registered() -> None:
    house = {"cka", "cka_unbiased", "cka_rbf", "cka_rbf_unbiased", "cka_rbf_fixed", "cka_minibatch", "rv"}
    house |= {"svcca", "pwcca", "procrustes", "rsa", *WITH_NEIGHBOURS}
    assert house <= set(METRICS)
    assert {"lds", "cds", "srss", "rmsc"} <= set(SPATIAL.names())


@pytest.mark.parametrize("property", EXCEPTIONS)
def test_exceptions_are_the_declared_ones(property: str) -> None:
    declared = {name: getattr(metric, property) for name, metric in METRICS.items()}
    assert {name for name, value in declared.items() if value is None or value is False} == EXCEPTIONS[property]


@pytest.mark.parametrize("registry", [ALIGNMENT, SPATIAL], ids=lambda registry: registry.kind)
def test_every_metric_has_a_line_of_definition_and_a_range(registry: object) -> None:
    for name, metric in registry.items():  # type: ignore[attr-defined]
        for line in (metric.definition, metric.range):
            assert line, name
            assert "\n" not in line, name
        assert len(metric.definition) + len(metric.range) < 220, name


def test_every_metric_declares_its_direction_and_meaning() -> None:
    words = metric_words()
    suffixes = {suffix for _, metric in SAMPLE.items() for suffix in metric.gives}
    assert {*ALIGNMENT.names(), *SPATIAL.names(), *suffixes} <= set(words)
    for name, entry in words.items():
        assert entry["better"] in ("lower", "higher", None), name
        assert 0 < len(entry["meaning"]) < 120, name
        assert "\n" not in entry["meaning"], name
    without = {name for name, entry in words.items() if entry["better"] is None}
    assert without == {"rmsc", "authpct", "ct", "grad_norm", "learning_rate", "train_seconds"}


@pytest.mark.parametrize("better", ["less", "", 1])
def test_a_direction_that_is_none_is_refused(better: str) -> None:
    for register in (
        lambda: alignment_metric("mine", definition="d", range="r", meaning="m", better=better),
        lambda: sample_metric("mine", needs="features", gives=("a",), meaning="m", better=better),
        lambda: sample_metric("mine", needs="features", gives=("a", "b"), meaning="m", better={"a": "lower"}),
        lambda: sample_metric("mine", needs="features", gives=("a",), meaning={"b": "m"}, better="lower"),
    ):
        with pytest.raises(UserError, match="metric 'mine'") as error:
            register()
        assert "\n" not in str(error.value)


def is_better(better: str | None, good: float, bad: float) -> bool:
    return good < bad if better == "lower" else good > bad


@every_metric
def test_direction_of_alignment(metric: AlignmentMetric) -> None:
    x, _ = related()
    noise = x.std() * np.random.default_rng(4).standard_normal(x.shape)
    assert is_better(metric.better, metric.function(x, x + 0.3 * noise), metric.function(x, x + 3 * noise))


@pytest.mark.parametrize("name", [name for name, metric in SPATIAL.items() if metric.better])
def test_direction_of_spatial_structure(name: str) -> None:
    """Tokens that change little by little over the image, and the same tokens at shuffled places."""
    metric = SPATIAL.get(name)
    rows, columns = np.divmod(np.arange(64), 8)
    tokens = np.stack([np.cos(rows / 4), np.sin(rows / 4), np.cos(columns / 4), np.sin(columns / 4)], axis=1)[None]
    masks = [(columns < 4)[None]] if metric.needs_mask else []
    shuffled = tokens[:, np.random.default_rng(5).permutation(64)]
    assert is_better(metric.better, metric.function(tokens, *masks), metric.function(shuffled, *masks))


@pytest.mark.parametrize("name", [name for name, metric in SAMPLE.items() if any(metric.better.values())])
def test_direction_of_sample_quality(name: str) -> None:
    """Samples like the real ones, against five of them, repeated and moved away; logits become nearly flat."""
    metric = SAMPLE.get(name)
    real, good = np.random.default_rng(6).standard_normal((2, 300, 6))
    bad = np.tile(good[:5], (60, 1)) + 3
    if metric.needs == "logits":
        good, bad = 4 * good, 0.1 * good
    better, worse = metric.function(real, good), metric.function(real, bad)
    for suffix, direction in metric.better.items():
        assert is_better(direction, better[suffix], worse[suffix]), suffix


def lines_of_the_document() -> dict[str, list[str]]:
    """The cells of every line of a table of the document whose first cell is a name: {name: cells}."""
    text = DOCS.read_text(encoding="utf-8").replace("\\|", "")
    lines = re.findall(r"^\| `(\w+)` \|(.*)\|$", text, re.MULTILINE)
    return {name: [cell.strip() for cell in rest.split("|")] for name, rest in lines}


@every_metric
def test_every_alignment_metric_is_described_as_declared(metric: AlignmentMetric) -> None:
    name = next(name for name, other in METRICS.items() if other is metric)
    _, bounds, free, symmetric = lines_of_the_document()[name]
    declared = {word for word in ("rotation", "scale", "shift") if getattr(metric, word)}
    assert set(free.split(", ")) == declared | ({"order"} if metric.permutation else set())
    assert (symmetric == "yes") == metric.symmetric
    assert metric.range.startswith(bounds.split(",")[0])


@pytest.mark.parametrize("name", SPATIAL.names())
def test_every_spatial_metric_is_described(name: str) -> None:
    _, bounds = lines_of_the_document()[name]
    assert SPATIAL.get(name).range.startswith(bounds)


@every_metric_declaring("best")
def test_best_value_for_equal_features(metric: AlignmentMetric) -> None:
    x, y = related()
    assert metric.function(x, x) == pytest.approx(metric.best, abs=1e-6)
    # Rows of length 1 bring in the published 1e-6 of the denominators.
    u, v = normalise_rows(x), normalise_rows(y)
    assert metric.function(u, u) == pytest.approx(metric.best, abs=1e-4)
    assert metric.function(u, v) < (0.95 if metric.chance is not None else 0.995) * metric.best


@every_metric
def test_symmetry_is_as_declared(metric: AlignmentMetric) -> None:
    x, y = related(noise=2.0, widths=(20, 20))
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


def moved(metric: AlignmentMetric, property: str) -> float:
    """Return by how much a rotation or a shift of both sides changes the metric's value."""
    x, y = related()
    if property == "rotation":
        u, v = x @ rotation(x.shape[1]), y @ rotation(y.shape[1])
    else:
        u, v = x + np.linspace(-3.0, 5.0, x.shape[1]), y + np.linspace(4.0, 1.0, y.shape[1])
    return abs(metric.function(u, v) - metric.function(x, y))


@every_metric
@pytest.mark.parametrize("property", ["rotation", "shift"])
def test_rotation_and_shift_change_what_they_may(metric: AlignmentMetric, property: str) -> None:
    assert (moved(metric, property) < 1e-9) == getattr(metric, property)


@every_metric
def test_order_of_samples_changes_nothing_but_the_pairing(metric: AlignmentMetric) -> None:
    x, y = related(300)
    order = np.random.default_rng(2).permutation(len(x))
    value = metric.function(x, y)
    assert (abs(metric.function(x[order], y[order]) - value) < 1e-9) == metric.permutation
    if metric.chance is not None:
        assert abs(metric.function(x[order], y) - value) > 0.05  # the pairing itself matters


@every_metric_declaring("chance")
def test_independent_features_are_near_chance(metric: AlignmentMetric) -> None:
    rng = np.random.default_rng(3)
    x, y = (normalise_rows(rng.standard_normal((1500, d))) for d in (8, 12))
    assert metric.function(x, y) == pytest.approx(metric.chance, abs=0.1)


@every_metric
def test_float32_equals_float64(metric: AlignmentMetric) -> None:
    x, y = map(normalise_rows, related())
    narrow = metric.function(x.astype(np.float32), y.astype(np.float32))
    assert isinstance(narrow, float)
    assert narrow == pytest.approx(metric.function(x, y), abs=1e-4)


@every_metric
@pytest.mark.parametrize("n", [60, 600])
@pytest.mark.parametrize("unit_rows", [False, True])
def test_computing_in_float32_costs_no_digits_at_a_large_mean(metric: AlignmentMetric, n: int, unit_rows: bool) -> None:
    """The same numbers given as float32 and as float64; in float32 a product of two rows has an error of about 0.02."""
    x, y = (side.astype(np.float32) for side in far_off(n))
    if unit_rows:
        x, y = normalise_rows(x), normalise_rows(y)
    wide = metric.function(x.astype(np.float64), y.astype(np.float64))
    assert metric.function(x, y) == pytest.approx(wide, abs=1e-4)


@every_metric_declaring("shift")
def test_a_large_mean_is_no_other_value(metric: AlignmentMetric) -> None:
    """Rounding the features themselves to float32 included: their mean leaves them 13 bits."""
    x, y = far_off()
    value = metric.function(x, y)
    assert value == pytest.approx(metric.function(x - 100.0, y - 100.0), abs=1e-9)
    assert metric.function(x.astype(np.float32), y.astype(np.float32)) == pytest.approx(value, abs=1e-4)


def test_a_large_mean_ruins_the_gram_matrix_of_the_features_as_they_come() -> None:
    x, y = far_off()
    K, L = (side.astype(np.float32) @ side.astype(np.float32).T for side in (x, y))
    hsic = published_variants.hsic_unbiased
    apart = abs(hsic(K, L) / math.sqrt(abs(hsic(K, K) * hsic(L, L))) - cka(x, y))
    assert apart > 1e-3


@every_metric
def test_prepared_features_give_the_same_number(metric: AlignmentMetric, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice, and with both sides in other roles: what is kept of a side must not depend on the other one."""
    (x, y), (z, _) = related(), related(seed=1)
    expected = [metric.function(x, y), metric.function(z, y), metric.function(y, x)]
    first, second, third = (prepare(side) for side in (x, y, z))
    pairs = [(first, second), (third, second), (second, first)]
    assert [metric.function(*pair) for pair in pairs] == expected
    checks: list[str] = []
    real = prepared.matrix
    monkeypatch.setattr(prepared, "matrix", lambda name, values: (checks.append(name), real(name, values))[1])
    assert [metric.function(*pair) for pair in pairs] == expected
    assert checks == []


@every_metric
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_constant_features_give_nan_with_a_reason_and_no_warning(metric: AlignmentMetric, dtype: type) -> None:
    x = related()[0].astype(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for constant in (np.full((len(x), 5), 0.1, dtype), np.zeros((len(x), 5), dtype)):
            values = [metric.function(*pair) for pair in ((x, constant), (constant, x), (constant, constant))]
            assert all(math.isnan(value) for value in values)
            reasons = [reason_of(value) for value in values]
            assert reasons == [f"constant features: all rows of {side} are equal" for side in "yxx"]


def test_only_an_undefined_value_has_a_reason() -> None:
    assert reason_of(0.5) is None
    assert reason_of(math.nan) is None
    assert isinstance(Undefined("nan"), float)


@every_metric
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x[:-1], y), "x has 159 rows and y 160"),
        (
            lambda x, y: (x, np.where(y == y[3, 3], np.nan, y)),
            r"y has NaN or infinity in 1 of 160 rows, first in row 3",
        ),
        (
            lambda x, y: (prepare(x, name="layer 3"), prepare(y[:-1], name="teacher dinov2")),
            "layer 3 has 160 rows and teacher dinov2 159",
        ),
        (lambda x, y: (x[0], y), r"x has shape \(24,\)"),
        (lambda x, y: (x[:1], y[:1]), "samples|rows"),
        (lambda x, y: (x[:, :0], y), r"x has shape \(160, 0\)"),
        (lambda x, y: (x.astype(str), y), "x has dtype <U32; allowed are float32 and float64"),
    ],
    ids=["unequal", "nan", "names", "vector", "one sample", "no column", "text"],
)
def test_bad_input_is_told(metric: AlignmentMetric, change: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        metric.function(*change(*related()))  # type: ignore[operator]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", WITH_NEIGHBOURS)
def test_too_few_samples_for_k(name: str) -> None:
    x, y = related(10)
    with pytest.raises(UserError, match="k=10 neighbours need more than 10 samples; given are 10"):
        METRICS[name].function(x, y)
    assert math.isfinite(METRICS[name].function(x, y, k=9))


@pytest.mark.parametrize("name", ["cka_unbiased", "cka_rbf_unbiased", "cka_minibatch"])
def test_unbiased_metrics_need_four_samples(name: str) -> None:
    x, y = related(3)
    with pytest.raises(UserError, match="x has 3 rows; this metric needs at least 4 samples"):
        METRICS[name].function(x, y)


def dense_cknna(x: np.ndarray, y: np.ndarray, *, k: int, unbiased: bool, eps: float) -> float:
    """CKNNA as defined, through N x N matrices; what the package computes from k entries a row."""
    grams, masks = [side @ side.T for side in (x, y)], []
    for gram in grams:
        similar = gram.copy()
        if unbiased:
            np.fill_diagonal(similar, -np.inf)
        masks.append(np.zeros_like(gram))
        np.put_along_axis(masks[-1], np.argsort(-similar, axis=1)[:, :k], 1.0, axis=1)
    hsic = published_variants.hsic_unbiased if unbiased else published_variants.hsic_biased
    both = masks[0] * masks[1]
    own = [hsic(mask * gram, mask * gram) for mask, gram in zip(masks, grams, strict=True)]
    if own[0] * own[1] < 0:
        return math.nan
    return hsic(both * grams[0], both * grams[1]) / (math.sqrt(own[0] * own[1]) + eps)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(data=st.data(), n=st.integers(5, 400), seed=st.integers(0, 999), unit=st.booleans(), unbiased=st.booleans())
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
