"""Probes: known accuracies, nothing chosen on the test images, the grid over layers and timesteps."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from helpers import digits, wake
from repa_eval.errors import UserError
from repa_eval.interpolant import Interpolant
from repa_eval.models.sit import SiT, SiTConfig
from repa_eval.probes import encoder, grid, linear
from repa_eval.probes.knn import BLOCK, TEMPERATURE, knn_accuracy, knn_votes
from repa_eval.results import records_of
from repa_eval.teachers._registry import load_teacher

Array = np.ndarray


def clusters(n: int, *, classes: int = 5, spread: float = 0.2, seed: int = 0) -> tuple[Array, Array]:
    """Separable features (n, 16) around one direction per class, and the classes."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((classes, 16))
    labels = generator.integers(0, classes, n)
    return centres[labels] + spread * generator.standard_normal((n, 16)), labels


# --- k-NN


def test_separable_features_are_told_apart() -> None:
    train, test = clusters(300), clusters(100, seed=1)
    assert knn_accuracy(*train, *test) == 1.0
    assert linear.fit(*train).score(*test) == 1.0
    assert linear.fit_logistic(*train).score(*test) == 1.0


def test_independent_features_are_guessed() -> None:
    generator = np.random.default_rng(0)
    train, test = ((generator.standard_normal((n, 16)), generator.integers(0, 5, n)) for n in (500, 2000))
    assert knn_accuracy(*train, *test) == pytest.approx(0.2, abs=0.05)
    assert linear.fit(*train).score(*test) == pytest.approx(0.2, abs=0.05)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_votes_are_softmax_weights_of_the_nearest(k: int) -> None:
    (train, labels), (test, _) = clusters(60, spread=2.0), clusters(7, spread=2.0, seed=1)
    votes = knn_votes(train, labels, test, ks=(k,))[k]
    for row, query in zip(votes, test, strict=True):
        cosines = train @ query / np.linalg.norm(train, axis=1) / np.linalg.norm(query)
        nearest = np.argsort(-cosines)[:k]
        weights = np.exp(cosines[nearest] / TEMPERATURE)
        expected = np.bincount(labels[nearest], weights / weights.sum(), minlength=5)
        np.testing.assert_allclose(row, expected, atol=1e-9)


def test_a_smaller_k_keeps_the_weights_of_the_larger() -> None:
    (train, labels), (test, _) = clusters(60, spread=2.0), clusters(7, spread=2.0, seed=1)
    votes = knn_votes(train, labels, test, ks=(5, 20))
    np.testing.assert_allclose(votes[20].sum(1), 1)
    assert (votes[5].sum(1) < 1).all()
    alone = knn_votes(train, labels, test, ks=(5,))[5]
    np.testing.assert_allclose(votes[5] / votes[5].sum(1, keepdims=True), alone, atol=1e-9)


def test_the_length_of_features_does_not_matter_to_k_nn() -> None:
    (train, labels), (test, _) = clusters(60, spread=2.0), clusters(30, spread=2.0, seed=1)
    scale = np.random.default_rng(2).uniform(0.1, 10, (60, 1))
    np.testing.assert_allclose(
        knn_votes(train * scale, labels, test)[20], knn_votes(train, labels, test)[20], atol=1e-9
    )


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    (train, labels), (test, _) = clusters(60, spread=2.0), clusters(30, spread=2.0, seed=1)
    whole = knn_votes(train, labels, test)[20]
    assert BLOCK > 30
    monkeypatch.setattr("repa_eval.probes.knn.BLOCK", 7)
    np.testing.assert_allclose(knn_votes(train, labels, test)[20], whole, atol=1e-12)


@pytest.mark.parametrize("k", [0, 61])
def test_impossible_neighbours(k: int) -> None:
    with pytest.raises(UserError, match=f"k {k}: there are 60 training features"):
        knn_accuracy(*clusters(60), *clusters(5), k=k)


# --- linear


def test_features_are_standardised_by_the_training_statistics() -> None:
    train, test = clusters(300, spread=2.0), clusters(200, spread=2.0, seed=1)
    scale, shift = np.random.default_rng(2).uniform(0.01, 100, 16), np.random.default_rng(3).uniform(-50, 50, 16)
    plain = linear.fit(*train).predict(test[0])
    moved = linear.fit(train[0] * scale + shift, train[1]).predict(test[0] * scale + shift)
    assert np.array_equal(plain, moved)


@pytest.mark.parametrize("strength", [0.01, 1.0, 1e4])
def test_ridge_is_that_of_scikit_learn(strength: float) -> None:
    (train, labels), (test, _) = clusters(60, spread=2.0), clusters(50, spread=2.0, seed=1)
    train[:, 3], test[:, 3] = 7.0, 7.0  # a constant feature
    theirs = make_pipeline(StandardScaler(), RidgeClassifier(alpha=strength)).fit(train, labels)
    ours = linear.fit(train, labels, strength=strength)
    np.testing.assert_allclose(ours.weights.T, theirs[1].coef_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(ours.intercept, theirs[1].intercept_)
    assert np.array_equal(ours.predict(test), theirs.predict(test))
    assert ours.strength == strength


def test_classes_that_training_lacks_are_never_predicted() -> None:
    train, labels = clusters(60)
    probe = linear.fit(train, labels, num_classes=8)
    assert probe.weights.shape == (16, 8)
    assert set(probe.predict(train)) <= set(range(5))


def test_the_strength_is_chosen_on_the_validation_images() -> None:
    train, val = clusters(40, spread=3.0), clusters(200, spread=3.0, seed=1)
    probe = linear.fit_best(*train, *val)
    scores = {each: linear.fit(*train, strength=each).score(*val) for each in linear.STRENGTHS}
    assert len(set(scores.values())) > 1
    best = max(scores.values())
    assert probe.score(*val) == best
    assert probe.strength == max(each for each, score in scores.items() if score == best)  # the strongest of equals


def test_a_penalty_is_positive() -> None:
    with pytest.raises(UserError, match="strength 0: the penalty must be positive"):
        linear.fit(*clusters(20), strength=0)


# --- the grid


def model() -> SiT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = SiT(SiTConfig(input_size=8, in_channels=1, num_classes=10, hidden_size=32, depth=2, num_heads=2))
    wake(made)
    return made.eval()


def splits() -> grid.Splits:
    return grid.Splits(digits("train").head(300), digits("val").head(100), digits("test-large").head(120))


def test_rows_of_the_grid() -> None:
    rows = grid.probe(model(), splits(), layers=(2, 1), timesteps=(0.1, 0.9), columns={"run": "mine"})
    cells = [(row.timestep, row.layer, row.metric) for row in rows]
    names = ("probe_accuracy", "knn_accuracy")
    assert cells == [(t, layer, name) for t in (0.1, 0.9) for layer in (2, 1) for name in names]
    for row in rows:
        assert (row.run, row.n) == ("mine", 120)
        assert row.stderr == pytest.approx((row.value * (1 - row.value) / 120) ** 0.5)
    early, late = (max(row.value for row in rows if row.timestep == t) for t in (0.1, 0.9))
    assert early > 0.3 > 0.25 > late  # near noise nothing is left to tell apart
    records = records_of(rows)
    assert len(records) == 2  # one per kind: a number does not depend on what else was asked for
    for record in records.values():
        assert record | {"kind": "probe", "num_train": 300, "num_val": 100, "num_test": 120, "label": "null"} == record
    alone = grid.probe(model(), splits(), layers=(2, 1), timesteps=(0.1, 0.9), kinds=("knn",), columns={"run": "mine"})
    assert alone == [row for row in rows if row.metric == "knn_accuracy"]


def test_the_grid_does_not_depend_on_the_batch_size() -> None:
    cell = {"layers": (2,), "timesteps": (0.2,)}
    a, b = (grid.probe(model(), splits(), **cell, batch_size=size) for size in (37, 256))
    assert [(row.metric, row.value, row.protocol) for row in a] == [(row.metric, row.value, row.protocol) for row in b]


def test_the_number_of_neighbours_is_chosen_on_the_validation_images() -> None:
    given = splits()
    (train, labels), (val, val_labels), (test, test_labels) = (
        clusters(n, classes=10, spread=2.0, seed=seed) for seed, n in enumerate((300, 100, 120))
    )
    parts = [
        dataclasses.replace(images, labels=each)
        for images, each in ((given.train, labels), (given.val, val_labels), (given.test, test_labels))
    ]
    found = grid._scores({"train": train, "val": val, "test": test}, grid.Splits(*parts), ("knn",))["knn"]
    chosen = {k: knn_accuracy(train, labels, val, val_labels, k=k) for k in grid.KS}
    scored = {k: knn_accuracy(train, labels, test, test_labels, k=k) for k in grid.KS}
    best = max(chosen, key=lambda k: chosen[k])
    assert best != grid.KS[0]
    assert len(set(scored.values())) > 1
    assert found == scored[best]


def test_nothing_is_chosen_on_the_test_images(monkeypatch: pytest.MonkeyPatch) -> None:
    # other test labels change the score, and nothing that leads to it
    given = splits()
    parts = {"train": given.train, "val": given.val, "test": given.test}
    features = {
        name: clusters(len(images), spread=3.0, seed=seed)[0] for seed, (name, images) in enumerate(parts.items())
    }
    flipped = dataclasses.replace(given.test, labels=(given.test.labels + 1) % 10)
    seen, original = [], linear.fit_best

    def spy(*arrays: Array, **settings: int) -> object:
        seen.append([float(array.sum()) for array in arrays])
        return original(*arrays, **settings)

    monkeypatch.setattr(linear, "fit_best", spy)
    for test in (given.test, flipped):
        grid._scores(features, grid.Splits(given.train, given.val, test), grid.KINDS)
    assert seen[0] == seen[1]
    assert seen[0][1] == given.train.labels.sum()
    assert seen[0][3] == given.val.labels.sum()


def test_the_level_of_the_teacher() -> None:
    rows = grid.teacher_level(load_teacher("digits-vit"), splits(), columns={"run": "mine"})
    assert [row.metric for row in rows] == ["probe_accuracy_teacher", "knn_accuracy_teacher"]
    assert all(row.value > 0.75 and row.layer is None and row.step is None for row in rows)
    records = records_of(rows)
    assert len(records) == 2
    record = records[rows[0].protocol]
    assert record["features"] == "teacher digits-vit"


def test_errors_of_the_grid() -> None:
    with pytest.raises(UserError, match=r"layer 3: this model has blocks 1\.\.2"):
        grid.probe(model(), splits(), layers=(3,), timesteps=(0.1,))
    with pytest.raises(UserError, match="probe svm: choose of linear, knn"):
        grid.probe(model(), splits(), layers=(1,), timesteps=(0.1,), kinds=("svm",))
    with pytest.raises(UserError, match="needs training, validation and test images"):
        grid.Splits(digits("val"), digits("val").head(0), digits("test"))
    assert Interpolant().path_type == "linear"


# --- facts of an encoder


def test_inked_patches() -> None:
    images = np.zeros((2, 1, 4, 4), np.uint8)
    images[1, 0, 2:, :2] = 255  # third patch of the second image
    tokens = np.arange(2 * 4 * 3).reshape(2, 4, 3).astype(float)
    found, labels = encoder._inked(tokens, images, np.array([7, 8]))
    assert np.array_equal(found, tokens[1, 2][None])
    assert labels.tolist() == [8]


def test_the_share_of_position() -> None:
    generator = np.random.default_rng(0)
    place = np.repeat(generator.standard_normal((1, 16, 4)), 50, axis=0)
    assert encoder._position_share(place) == pytest.approx(1)
    assert encoder._position_share(generator.standard_normal((500, 16, 4))) < 0.01
