"""Metrics of one encoder's token grid: definitions written out pair by pair, invariances, and bad input."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest

from repa_eval.errors import UserError
from repa_eval.interfaces.metric import SPATIAL, SpatialMetric
from repa_eval.metrics.cds import cds, cds_per_image
from repa_eval.metrics.lds import lds, lds_per_image
from repa_eval.metrics.rmsc import rmsc, rmsc_per_image
from repa_eval.metrics.shared import token_grid
from repa_eval.metrics.shared.checks import reason_of
from repa_eval.metrics.srss import srss, srss_per_image

METRICS = dict(SPATIAL.items())
every_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS.keys())


def smooth(n: int = 5, side: int = 8, width: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (n, side^2, width) that vary smoothly over the grid about a mean, and masks of a round region."""
    rng = np.random.default_rng(0)
    rows, columns = np.indices((side, side)).reshape(2, -1) / side
    waves = np.stack([np.cos(3 * rows), np.sin(3 * columns), rows * columns, np.ones_like(rows)], axis=1)
    tokens = waves @ rng.standard_normal((n, 4, width)) + 0.3 * rng.standard_normal((n, side * side, width))
    masks = (rows - 0.3) ** 2 + (columns - 0.3) ** 2 < 0.12
    return tokens, np.tile(masks, (n, 1))


def value(metric: SpatialMetric, tokens: np.ndarray, masks: np.ndarray) -> float:
    return metric.function(tokens, masks) if metric.needs_mask else metric.function(tokens)


def pairs_of(side: int) -> list[tuple[int, int, int]]:
    places = [(i // side, i % side) for i in range(side * side)]
    distance = [[abs(a[0] - b[0]) + abs(a[1] - b[1]) for b in places] for a in places]
    return [(i, j, distance[i][j]) for i in range(side * side) for j in range(side * side)]


def test_definitions_pair_by_pair() -> None:
    tokens, masks = smooth(2)
    for image in range(2):
        unit = tokens[image] / np.linalg.norm(tokens[image], axis=1, keepdims=True)
        groups: dict[int, list[float]] = {}
        for i, j, d in pairs_of(8):
            groups.setdefault(d, []).append(float(unit[i] @ unit[j]))
        far = [c for d, found in groups.items() if d >= 6 for c in found]
        assert lds_per_image(tokens)[image] == pytest.approx(np.mean(groups[1]) - np.mean(far), abs=1e-12)
        slope = np.polyfit(range(1, 9), [np.mean(groups[d]) for d in range(1, 9)], 1)[0]
        assert cds_per_image(tokens)[image] == pytest.approx(-slope, abs=1e-12)
        spread = np.linalg.norm(unit - unit.mean(axis=0), axis=1)
        assert rmsc_per_image(tokens)[image] == pytest.approx(np.sqrt(np.square(spread).mean()), abs=1e-12)
        assert srss_per_image(tokens, masks)[image] == pytest.approx(srss_by_hand(unit, masks[image]), abs=1e-12)


def srss_by_hand(unit: np.ndarray, mask: np.ndarray) -> float:
    scores = []
    for i in np.flatnonzero(mask):
        own = [float(unit[i] @ unit[j]) for a, j, d in pairs_of(8) if a == i and d == 1 and mask[j]]
        other = [float(unit[i] @ unit[j]) for a, j, d in pairs_of(8) if a == i and d >= 6 and not mask[j]]
        if own and other:
            scores.append(np.mean(own) - np.mean(other))
    assert len(scores) > 0
    return float(np.mean(scores))


@every_metric
def test_invariances(metric: SpatialMetric) -> None:
    tokens, masks = smooth()
    expected = value(metric, tokens, masks)
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((12, 12)))[0]
    lengths = np.random.default_rng(2).uniform(0.5, 9.0, (*tokens.shape[:2], 1))
    order = [3, 0, 4, 1, 2]
    mirrored = tokens.reshape(5, 8, 8, 12)[:, ::-1].reshape(tokens.shape)
    mirrored_masks = masks.reshape(5, 8, 8)[:, ::-1].reshape(masks.shape)
    assert value(metric, tokens @ turn, masks) == pytest.approx(expected, abs=1e-12)
    assert value(metric, tokens * lengths, masks) == pytest.approx(expected, abs=1e-12)
    assert value(metric, tokens[order], masks[order]) == pytest.approx(expected, abs=1e-12)
    assert value(metric, mirrored, mirrored_masks) == pytest.approx(expected, abs=1e-12)
    assert value(metric, tokens.astype(np.float32), masks) == pytest.approx(expected, abs=1e-6)


@every_metric
def test_shuffled_tokens_lose_their_place_but_not_their_spread(metric: SpatialMetric) -> None:
    tokens, masks = smooth()
    shuffled = tokens[:, np.random.default_rng(3).permutation(64)]
    if metric.function is rmsc:
        assert value(metric, shuffled, masks) == pytest.approx(value(metric, tokens, masks), abs=1e-12)
    else:
        assert abs(value(metric, shuffled, masks)) < 0.15 * value(metric, tokens, masks)


@every_metric
def test_equal_tokens_have_no_structure(metric: SpatialMetric) -> None:
    _, masks = smooth()
    tokens = np.ones((5, 64, 3)) * np.arange(1.0, 6.0)[:, None, None]
    assert value(metric, tokens, masks) == pytest.approx(0.0, abs=1e-7)


@every_metric
def test_blocks_change_nothing(metric: SpatialMetric, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, masks = smooth()
    expected = value(metric, tokens, masks)
    monkeypatch.setattr(token_grid, "BLOCK_ELEMENTS", 64 * 64 * 2)
    assert value(metric, tokens, masks) == pytest.approx(expected, abs=1e-14)


def test_the_grid_may_be_oblong() -> None:
    tokens = smooth(2)[0][:, :48]
    square = tokens.reshape(2, 6, 8, 12)
    turned = square.transpose(0, 2, 1, 3).reshape(2, 48, 12)
    for metric in (lds, cds):
        assert metric(tokens, grid=(6, 8)) == pytest.approx(metric(turned, grid=(8, 6)), abs=1e-12)
        assert abs(metric(tokens, grid=(6, 8)) - metric(tokens, grid=(8, 6))) > 1e-3


def test_images_without_an_anchor_do_not_count() -> None:
    tokens, masks = smooth(3)
    masks[1] = True  # no background
    values = srss_per_image(tokens, masks)
    assert np.isnan(values).tolist() == [False, True, False]
    assert srss(tokens, masks) == pytest.approx(values[[0, 2]].mean(), abs=1e-15)


def test_a_single_foreground_token_has_no_one_beside_it() -> None:
    tokens, _ = smooth(1)
    mask = np.zeros((1, 64), dtype=int)
    mask[0, 0] = 1
    assert math.isnan(srss(tokens, mask))
    mask[0, 1] = 1
    assert math.isfinite(srss(tokens, mask))


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda t: lds(t[:, :9]), "the grid has no two tokens at distance 6, or none at 1"),
        (lambda t: cds(t[:, :1]), "the grid has fewer than two distances"),
        (lambda t: srss(t, np.ones(t.shape[:2])), "no image has a foreground token with foreground beside it"),
    ],
)
def test_what_a_grid_cannot_tell_is_nan_with_its_reason(call: Callable[[np.ndarray], float], reason: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer = call(smooth(2)[0])
    assert math.isnan(answer)
    assert str(reason_of(answer)).startswith(reason)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: lds(t[:, :63]), "63 tokens form no square grid: give grid="),
        (lambda t: cds(t, grid=(8, 7)), "grid 8 x 7 does not match 64 tokens"),
        (lambda t: srss(t, np.ones((2, 16))), r"masks \(2, 16\) do not match tokens \(2, 64, 12\)"),
        (lambda t: srss(t, np.full((2, 64), 0.5)), "masks hold other values than 0 and 1"),
        (lambda t: rmsc(t[0]), r"tokens has shape \(64, 12\); needed are the axes \(images, tokens, features\)"),
        (lambda t: rmsc(t[:0]), r"tokens has shape \(0, 64, 12\)"),
        (
            lambda t: lds(np.where(t == t[1, 3, 3], np.inf, t)),
            "tokens has NaN or infinity in 1 of 2 rows, first",
        ),
        (lambda t: lds(t, far=0), "far=0: distant tokens are at least 1 apart"),
        (lambda t: cds(t, most=1), "most=1: a slope needs at least the distances 1 and 2"),
    ],
)
def test_bad_input_is_told(call: Callable[[np.ndarray], float], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        call(smooth(2)[0])
    assert "\n" not in str(error.value)
