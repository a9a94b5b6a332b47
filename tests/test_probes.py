"""Probes: known accuracies, nothing chosen on the test images, the grid over layers and timesteps."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from helpers import digits, run, tiny, wake
from repa_eval.cli import main
from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.errors import UserError
from repa_eval.features.capture import Capture
from repa_eval.interfaces.images import Images, in_memory
from repa_eval.interfaces.teacher import load_teacher
from repa_eval.models.sit import SiT, SiTConfig
from repa_eval.probes import batch_norm, encoder, grid, knn, linear
from repa_eval.probes.batch_norm import Training
from repa_eval.probes.confusion import as_note, confusion, from_note, most_confused
from repa_eval.probes.contract import Known
from repa_eval.probes.kinds import KINDS, kind_of
from repa_eval.probes.knn import BLOCK, knn_accuracy, knn_votes
from repa_eval.results import records_of

Array = np.ndarray
SHORT = Training(epochs=4, batch_size=32)


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
        weights = np.exp(cosines[nearest] / 0.07)  # DINO's temperature
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


@pytest.mark.parametrize(("block", "chunk"), [(7, 8192), (1024, 13), (7, 20), (4, 60), (1, 1)])
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, block: int, chunk: int) -> None:
    (train, labels), (test, _) = clusters(60, spread=2.0), clusters(30, spread=2.0, seed=1)
    whole = knn_votes(train, labels, test)[20]
    assert BLOCK > 30
    monkeypatch.setattr(knn, "BLOCK", block)
    monkeypatch.setattr(knn, "CHUNK", chunk)
    np.testing.assert_allclose(knn_votes(train, labels, test)[20], whole, atol=1e-12)


def test_similarities_are_never_held_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    (train, labels), (test, _) = clusters(600, spread=2.0), clusters(50, spread=2.0, seed=1)
    seen, original = [], knn._largest
    monkeypatch.setattr(knn, "_largest", lambda values, most: seen.append(values.shape) or original(values, most))
    monkeypatch.setattr(knn, "BLOCK", 16)
    monkeypatch.setattr(knn, "CHUNK", 32)
    knn_votes(train, labels, test)
    assert max(rows for rows, _ in seen) == 16
    assert max(columns for _, columns in seen) <= 20 + 32


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
    assert ours.setting == strength


@pytest.mark.parametrize("n", [10, 15, 16, 17])
def test_ridge_of_fewer_images_than_features(n: int) -> None:
    (train, labels), (test, _) = clusters(n, spread=2.0), clusters(50, spread=2.0, seed=1)
    theirs = make_pipeline(StandardScaler(), RidgeClassifier(alpha=0.1)).fit(train, labels)
    (ours,) = linear.fit_all(train, labels, strengths=(0.1,))
    np.testing.assert_allclose(ours.weights.T, theirs[1].coef_, rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(ours.intercept, theirs[1].intercept_)
    assert np.array_equal(ours.predict(test), theirs.predict(test))


def test_layers_of_any_width_are_fitted_as_if_alone() -> None:
    train, labels = clusters(60, spread=2.0)
    layers = [train, train[:, :9], train**2]
    together = linear.fit_layers(layers, labels, num_classes=5)
    for features, found in zip(layers, together, strict=True):
        for ours, alone in zip(found, linear.fit_all(features, labels), strict=True):
            assert np.array_equal(ours.weights, alone.weights)


def test_the_strengths_are_seven_decades() -> None:
    assert linear.STRENGTHS == (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0)
    assert knn.KS == (5, 10, 20, 50)


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
    assert probe.setting == max(each for each, score in scores.items() if score == best)  # the strongest of equals


def test_a_penalty_is_positive() -> None:
    with pytest.raises(UserError, match="strength 0: the penalty must be positive"):
        linear.fit(*clusters(20), strength=0)


def test_logistic_regression_is_chosen_likewise() -> None:
    train, val = clusters(40, spread=3.0), clusters(200, spread=3.0, seed=1)
    model, strength, converged = linear.fit_best_logistic(*train, *val)
    scores = {each: linear.fit_logistic(*train, strength=each).score(*val) for each in linear.STRENGTHS}
    assert len(set(scores.values())) > 1
    assert converged
    assert model.score(*val) == max(scores.values())
    assert strength == max(each for each, score in scores.items() if score == max(scores.values()))
    assert linear.fit_logistic(*train, strength=100.0)[1].get_params()["C"] == pytest.approx(0.01)


def test_logistic_regression_that_stops_early_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "MAX_ITERATIONS", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (probe,) = kind_of("logistic").fit(known(), SHORT)
    assert probe.remark == "logistic regression: stopped after 1 iterations"


# --- batch norm and a linear layer


def reference(
    features: Array, labels: Array, rows: list[Array], rate: float, test: Array, *, classes: int
) -> tuple[Array, Array]:
    """Weights and scores of one head as written with torch's own layers, from the same batches."""
    norm, head = nn.BatchNorm1d(features.shape[1], affine=False, eps=1e-6), nn.Linear(features.shape[1], classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.Adam(head.parameters(), lr=rate)
    x, y = torch.from_numpy(features).float(), torch.from_numpy(labels)
    for step, batch in enumerate(rows):
        optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + np.cos(np.pi * step / len(rows)))
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(norm(x[batch])), y[batch]).backward()
        optimizer.step()
    norm.running_mean, norm.running_var = x.mean(0), x.var(0, correction=0)
    norm.eval()
    return head.weight.detach().numpy(), head(norm(torch.from_numpy(test).float())).detach().numpy()


@pytest.mark.parametrize("batch_size", [25, 16384])
def test_heads_are_those_that_torch_trains_one_by_one(batch_size: int) -> None:
    (train, labels), (test, _) = clusters(60, spread=2.0), clusters(20, spread=2.0, seed=1)
    training = Training(epochs=5, batch_size=batch_size, rates=(0.03, 0.001), seed=3)
    layers = [train, 3 * train**2 - 1, train[:, :7]]
    rows = list(batch_norm._batches(60, training))
    assert [len(batch) for batch in rows] == ([60] * 5 if batch_size > 60 else [20] * 15)
    found = batch_norm.fit_layers(layers, labels, num_classes=5, training=training)
    for place, features in enumerate(layers):
        shown = [test, 3 * test**2 - 1, test[:, :7]][place]
        for ours, rate in zip(found[place], (0.001, 0.03), strict=True):
            weights, scores = reference(features, labels, rows, rate, shown, classes=5)
            assert ours.setting == rate
            np.testing.assert_allclose(ours.weights.T, weights, rtol=1e-3, atol=2e-5)
            own = (shown - ours.mean) / ours.scale @ ours.weights + ours.intercept
            np.testing.assert_allclose(own, scores, rtol=1e-3, atol=2e-4)


def test_every_epoch_shows_every_image_once_in_an_order_of_the_seed() -> None:
    training = Training(epochs=3, batch_size=8)
    batches = list(batch_norm._batches(20, training))
    assert [len(batch) for batch in batches] == [7, 7, 6] * 3
    orders = [np.concatenate(batches[first : first + 3]).tolist() for first in (0, 3, 6)]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    other = list(batch_norm._batches(20, dataclasses.replace(training, seed=1)))
    assert [batch.tolist() for batch in other] != [batch.tolist() for batch in batches]


def test_a_large_mean_costs_batch_norm_nothing() -> None:
    (train, labels), (test, _) = clusters(60, spread=2.0), clusters(50, spread=2.0, seed=1)
    scores = []
    for scale, shift in ((1.0, 0.0), (1e-4, 0.0), (0.1, 100.0)):
        moved = [(each * scale + shift).astype(np.float32) for each in (train, test)]
        (((fitted, *_),)) = batch_norm.fit_layers([moved[0]], labels, num_classes=5, training=SHORT)
        scores.append((moved[1].astype(float) - fitted.mean) / fitted.scale @ fitted.weights + fitted.intercept)
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-4)
    np.testing.assert_allclose(scores[2], scores[0], atol=2e-3)


def test_the_training_of_the_heads() -> None:
    assert (batch_norm.EPS, Training().epochs) == (1e-6, 90)
    assert 0.001 in Training().rates
    paper = Training(epochs=90, batch_size=16384, rates=(0.001,)).text()
    assert paper.endswith("Adam, cosine to 0, 90 epochs, batch 16384, learning rate 0.001")
    assert "chosen on val" in Training().text()
    for given in ({"epochs": 0}, {"batch_size": 1}, {"rates": ()}, {"rates": (0.1, 0.0)}, {"rates": (float("inf"),)}):
        with pytest.raises(UserError, match=r"are needed|give positive numbers"):
            Training(**given)


# --- every kind


def known(*, spread: float = 2.5) -> Known:
    (train, labels), (val, val_labels) = clusters(80, spread=spread), clusters(60, spread=spread, seed=1)
    return Known([train], labels, [val], val_labels, 5)


def candidates(name: str, features: Array, given: Known) -> dict[str, Array]:
    """What the probe of every setting says of features, by setting: weakest penalty, least k or rate first."""
    train, labels = given.train[0], given.train_labels
    if name == "knn":
        return {f"k {k}": votes.argmax(1) for k, votes in knn_votes(train, labels, features, ks=knn.KS).items()}
    if name == "logistic":
        found = {each: linear.fit_logistic(train, labels, strength=each) for each in linear.STRENGTHS}
    elif name == "linear":
        found = {probe.setting: probe for probe in linear.fit_all(train, labels)}
    else:
        (fitted,) = batch_norm.fit_layers([train], labels, num_classes=5, training=SHORT)
        found = {probe.setting: probe for probe in fitted}
    what = "learning rate" if name == "linear-bn" else "strength"
    return {f"{what} {setting:g}": probe.predict(features) for setting, probe in found.items()}


@pytest.mark.parametrize("name", KINDS)
def test_a_test_split_that_would_make_another_setting_win_changes_nothing(name: str) -> None:
    given = known()
    test = clusters(200, spread=2.5, seed=2)[0]
    on_val = {each: (said == given.val_labels).mean() for each, said in candidates(name, given.val[0], given).items()}
    on_test = candidates(name, test, given)
    worst = min(on_val, key=lambda each: on_val[each])
    assert on_val[worst] < max(on_val.values())
    splits = as_splits(given, on_test[worst])  # the labels of test are what the worst on val says: it scores 1
    features = {"block": {"train": given.train[0], "val": given.val[0], "test": test}}
    score = grid._scores(features, splits, (name,), SHORT, True)["block"][name]
    chosen = json.loads(score.note)["chosen"]
    assert on_val[chosen] == max(on_val.values())
    assert chosen != worst
    assert score.accuracy == (on_test[chosen] == on_test[worst]).mean() < 1


@pytest.mark.parametrize("name", KINDS)
def test_of_equally_good_settings_the_simplest_is_taken(name: str) -> None:
    given = known(spread=0.3)
    on_val = {each: (said == given.val_labels).mean() for each, said in candidates(name, given.val[0], given).items()}
    best = [each for each, score in on_val.items() if score == max(on_val.values())]
    assert len(best) > 1
    (probe,) = kind_of(name).fit(given, SHORT)
    assert probe.chosen == (best[-1] if name in ("linear", "logistic") else best[0])
    alone = linear.fit_best(given.train[0], given.train_labels, given.val[0], given.val_labels)
    if name == "linear":
        assert best[-1] == f"strength {alone.setting:g}"


def as_splits(given: Known, test_labels: Array) -> grid.Splits:
    def images(labels: Array) -> Images:
        return Images("made", "any", np.zeros((len(labels), 1, 1, 1), np.uint8), labels, 5)

    return grid.Splits(images(given.train_labels), images(given.val_labels), images(test_labels))


@pytest.mark.parametrize("name", KINDS)
def test_a_prediction_depends_on_its_image_alone(name: str) -> None:
    # were anything standardised by the test features, others beside it would change the answer
    (probe,) = kind_of(name).fit(known(), SHORT)
    test = clusters(60, spread=2.5, seed=2)[0]
    together = probe.predict(test)
    assert len(set(together.tolist())) > 2
    moved = np.concatenate([test, 40 * test + 90])
    assert np.array_equal(probe.predict(moved)[:60], together)
    assert np.array_equal(np.concatenate([probe.predict(test[row : row + 1]) for row in range(60)]), together)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_tells_classes_apart_and_fits_many_layers(name: str) -> None:
    (train, labels), (val, val_labels) = clusters(200), clusters(60, seed=1)
    shifted = train + 3.0  # classes that need the intercept: all centres on one side
    given = Known([train, shifted], labels, [val, val + 3.0], val_labels, 5)
    first, second = kind_of(name).fit(given, SHORT)
    test, test_labels = clusters(100, seed=2)
    assert (first.predict(test) == test_labels).mean() == 1.0
    assert (second.predict(test + 3.0) == test_labels).mean() > 0.9


@pytest.mark.parametrize("name", ["linear", "linear-bn", "logistic"])
def test_the_intercept_knows_how_frequent_classes_are(name: str) -> None:
    generator = np.random.default_rng(0)
    labels = (np.arange(100) % 10 == 0).astype(np.int64)  # one of ten; the features say nothing
    features = [generator.standard_normal((100, 3)) for _ in range(2)]
    (probe,) = kind_of(name).fit(Known([features[0]], labels, [features[1]], labels, 2), SHORT)
    assert (probe.predict(features[1]) == 0).mean() > 0.9


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
    a, b = (grid.probe(model(), splits(), **cell, capture=Capture(batch_size=size)) for size in (37, 256))
    assert [(row.metric, row.value, row.protocol) for row in a] == [(row.metric, row.value, row.protocol) for row in b]


def test_what_fits_a_probe_is_not_given_the_test_images(monkeypatch: pytest.MonkeyPatch) -> None:
    # other test labels and features change the score, and nothing that leads to it
    given = splits()
    features = {
        name: clusters(len(images), spread=3.0, seed=seed)[0]
        for seed, (name, images) in enumerate(given.parts().items())
    }
    seen = []
    for name, kind in KINDS.items():

        def spy(known: Known, training: Training, kind: object = kind) -> object:
            seen.append(
                [float(array.sum()) for array in (*known.train, known.train_labels, *known.val, known.val_labels)]
            )
            return kind.fit(known, training)

        monkeypatch.setitem(KINDS, name, dataclasses.replace(kind, fit=spy))
    for test, shift in ((given.test, 0.0), (dataclasses.replace(given.test, labels=(given.test.labels + 1) % 10), 5.0)):
        block = {"block": {**features, "test": features["test"] + shift}}
        grid._scores(block, grid.Splits(given.train, given.val, test), list(KINDS), SHORT, False)
    train, val = given.train.labels.sum(), given.val.labels.sum()
    expected = [float(features["train"].sum()), float(train), float(features["val"].sum()), float(val)]
    assert seen == [expected] * 2 * len(KINDS)


def test_every_kind_has_rows_and_a_level() -> None:
    names = ("probe_accuracy", "knn_accuracy", "linear_bn_accuracy", "logistic_accuracy")
    rows = grid.probe(
        model(), splits(), layers=(1, 2), timesteps=(0.1,), kinds=list(KINDS), training=SHORT, capture=Capture(seed=4)
    )
    assert [(row.layer, row.metric) for row in rows] == [(layer, name) for layer in (1, 2) for name in names]
    assert all(row.value > 0.15 and row.note is None and row.seed == 4 for row in rows)
    levels = grid.teacher_level(
        load_teacher("digits-vit"), splits(), kinds=list(KINDS), training=SHORT, capture=Capture(seed=4)
    )
    assert [row.metric for row in levels] == [f"{name}_teacher" for name in names]
    assert all(row.value > 0.75 for row in levels)
    own, of_teacher = records_of(rows), records_of(levels)
    for row, level in zip(rows, levels, strict=False):
        assert own[row.protocol]["probe"] == of_teacher[level.protocol]["probe"]
    assert own[rows[2].protocol]["probe"].startswith(
        "batch norm without parameters, linear from 0, Adam, cosine to 0, 4"
    )
    assert [of_teacher[level.protocol].get("seed") for level in levels] == [None, None, 4, None]


def test_the_heads_see_the_images_in_an_order_of_the_seed_of_the_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, original = [], batch_norm.fit_layers
    monkeypatch.setattr(batch_norm, "fit_layers", lambda *a, **given: seen.append(given) or original(*a, **given))
    how = {"kinds": ("linear-bn",), "training": SHORT, "capture": Capture(seed=4)}
    grid.probe(model(), splits(), layers=(1,), timesteps=(0.1,), **how)
    grid.teacher_level(load_teacher("digits-vit"), splits(), **how)
    assert [given["training"] for given in seen] == [dataclasses.replace(SHORT, seed=4)] * 2


def test_records_of_ridge_and_k_nn() -> None:
    # the reports and tables of finished runs hold these
    for kind, text in {
        "linear": "standardised, ridge, strength of 0.01..10000 chosen on val",
        "knn": "k-NN, cosine, temperature 0.07, k of 5, 10, 20, 50 chosen on val",
    }.items():
        assert grid.protocol(splits(), Interpolant(), kind=kind, seed=0)["probe"] == text
    record = grid.protocol(splits(), Interpolant(), kind="linear", seed=0)
    assert "shots" not in record
    assert "epochs" not in str(record)


def test_the_confusion_stands_in_the_notes() -> None:
    cell = {"layers": (2,), "timesteps": (0.1,), "training": SHORT}
    rows = grid.probe(model(), splits(), **cell, with_confusion=True)
    for row, plain in zip(rows, grid.probe(model(), splits(), **cell), strict=True):
        assert dataclasses.replace(row, note=None) == plain
        counts = from_note(row.note)
        assert sum(sum(own.values()) for own in counts.values()) == 120
        assert sum(own.get(true, 0) for true, own in counts.items()) / 120 == row.value
        assert {true: sum(own.values()) for true, own in counts.items()} == dict(
            enumerate(np.bincount(splits().test.labels).tolist())
        )


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
    with pytest.raises(UserError, match="probe svm: choose of linear, knn, linear-bn, logistic"):
        grid.probe(model(), splits(), layers=(1,), timesteps=(0.1,), kinds=("svm",))
    with pytest.raises(UserError, match="needs training, validation and test images"):
        grid.Splits(digits("val"), digits("val").head(0), digits("test"))
    assert Interpolant().path_type == "linear"


def relabelled(labels: dict[str, list[int]]) -> grid.Splits:
    """Splits of five classes with these labels."""
    parts = {name: Images("made", name, np.zeros((len(each), 1, 8, 8), np.uint8), np.array(each), 5)
             for name, each in labels.items()}  # fmt: skip
    return grid.Splits(**parts)


@pytest.mark.parametrize(
    ("train", "val", "test", "text"),
    [
        ([3, 3], [3], [3], "all 2 training images are of class 3; a probe needs two classes"),
        ([0, 1, 2], [3, 4], [0], "3 training images of 5 classes; a probe needs at least one of every class"),
        ([0, 1, 1, 1, 1], [0], [4, 2], r"no training image of class 2 \(2 of 4 classes lack one\)"),
        ([0, 1], [-1, 0], [0], r"val has an image of class -1; the classes are 0\.\.4"),
        ([0, 1], [0], [5], r"test has an image of class 5; the classes are 0\.\.4"),
    ],
)
def test_classes_that_cannot_be_probed(train: list[int], val: list[int], test: list[int], text: str) -> None:
    given = relabelled({"train": train, "val": val, "test": test})
    with pytest.raises(UserError, match=text):
        grid.probe(model(), given, layers=(1,), timesteps=(0.1,))
    with pytest.raises(UserError, match=text):
        grid.teacher_level(load_teacher("digits-vit"), given)


def test_classes_that_nobody_asks_for_may_be_missing() -> None:
    relabelled({"train": [0, 1, 1, 2], "val": [0], "test": [1, 0]}).check()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_named(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    original = grid.hidden_features

    def broken(*given: object, **settings: object) -> dict[int, Array]:
        found = original(*given, **settings)
        if settings["capture"].stream == "probe val":
            found[2][[7, 60]] = value
        return found

    monkeypatch.setattr(grid, "hidden_features", broken)
    text = r"layer 2 at t=0\.1: the features of val image 7 are not finite \(2 of 100 images\)"
    with pytest.raises(UserError, match=text):
        grid.probe(model(), splits(), layers=(1, 2), timesteps=(0.1,))


# --- few shots


def test_shots_are_drawn_per_class_by_the_seed() -> None:
    given = splits()
    few, more, other = given.few(3, seed=1), given.few(5, seed=1), given.few(3, seed=2)
    assert np.bincount(few.train.all_labels()).tolist() == [3] * 10
    assert (few.val, few.test) == (given.val, given.test)
    assert few.record() == {
        **given.record(), "num_train": 30, "train_hash": few.train.digest(), "shots": 3, "shots_seed": 1
    }  # fmt: skip
    assert few.train.digest() == given.few(3, seed=1).train.digest() != other.train.digest()
    pictures = [{image.tobytes() for image in in_memory(each.train).images} for each in (few, more, given)]
    assert pictures[0] < pictures[1] < pictures[2]


def test_more_shots_than_images() -> None:
    with pytest.raises(UserError, match="0 shots: at least one training image"):
        splits().few(0)
    given = relabelled({"train": [0, 0, 0, 1, 1], "val": [0], "test": [1]})
    with pytest.raises(UserError, match="3 shots: class 1 has 2 training images"):
        given.few(3)
    assert len(given.few(2).train) == 4


def test_a_probe_of_few_shots() -> None:
    rows = grid.teacher_level(load_teacher("digits-vit"), splits().few(5), kinds=list(KINDS), training=SHORT)
    assert len(rows) == 4
    assert all(row.value > 0.5 for row in rows)
    assert all(record["shots"] == 5 for record in records_of(rows).values())


# --- confusion


def test_confusion_counts() -> None:
    counts = confusion(np.array([0, 0, 0, 2, 2, 1]), np.array([0, 2, 2, 2, 0, 1]))
    assert counts == {0: {0: 1, 2: 2}, 1: {1: 1}, 2: {0: 1, 2: 1}}
    assert list(counts) == [0, 1, 2]
    note = as_note(counts, chosen="k 5", remark="few")
    assert json.loads(note) == {"confusion": json.loads(json.dumps(counts)), "chosen": "k 5", "remark": "few"}
    assert from_note(note) == counts
    assert from_note("value is nan") == from_note(None) == {}
    assert most_confused(counts) == [(0, 2, 2, pytest.approx(2 / 3)), (2, 0, 1, 0.5)]
    assert most_confused(counts, 1) == [(0, 2, 2, pytest.approx(2 / 3))]


# --- the command


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tiny("repa", max_steps=1), tmp_path_factory.mktemp("probes") / "repa")


def command(ckpt: Path, *words: str) -> Result:
    given = ["probe", "--ckpt", str(ckpt), "--layer", "2", "--timesteps", "0.1", "--no-cache", "--quiet", *words]
    return CliRunner().invoke(main, given)


def test_the_command_takes_every_option(ckpt: Path) -> None:
    words = ["--probes", "linear-bn,logistic", "--shots", "4", "--probe-epochs", "2", "--probe-batch-size", "16"]
    done = command(ckpt, *words, "--probe-lr", "0.01,0.1", "--seed", "3", "--json", "--confusion")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    names = ["linear_bn_accuracy", "logistic_accuracy"]
    assert [row["metric"] for row in answer["rows"]] == [*names, *(f"{name}_teacher" for name in names)]
    assert all(sum(map(sum, map(dict.values, from_note(row["note"]).values()))) == 600 for row in answer["rows"])
    for record in answer["protocols"].values():
        assert record | {"shots": 4, "shots_seed": 3, "num_train": 40, "num_val": 240, "num_test": 600} == record
    text = answer["protocols"][answer["rows"][0]["protocol"]]["probe"]
    assert text.endswith("2 epochs, batch 16, learning rate 0.01, 0.1 chosen on val")


def test_the_confusion_is_shown_as_a_table(ckpt: Path) -> None:
    plain, shown = command(ckpt, "--probes", "linear"), command(ckpt, "--probes", "linear", "--confusion")
    assert shown.stdout.startswith(plain.stdout.rstrip("\n"))
    lines = shown.stdout[len(plain.stdout) :].strip().splitlines()
    assert lines[0].startswith("probe_accuracy 0.")
    assert lines[0].endswith(", block 2, t=0.1, n=600; a line per class, a column per answer")
    assert lines[1].split() == ["class", *map(str, range(10)), "right"]
    body = [line.split() for line in lines[2:12]]
    assert [line[0] for line in body] == list(map(str, range(10)))
    total = sum(int(cell) for line in body for cell in line[1:11] if cell != ".")
    right = sum(int(line[1 + row]) for row, line in enumerate(body) if line[1 + row] != ".")
    assert total == 600
    assert f"probe_accuracy {right / 600:.3f}, block" in lines[0]
    assert lines[13].startswith("probe_accuracy_teacher 0.")


def test_many_classes_are_shown_as_pairs() -> None:
    from repa_eval.commands.probe import _confusions

    generator = np.random.default_rng(0)
    note = as_note(confusion(np.arange(300) % 30, generator.integers(0, 30, 300)), chosen="k 5")
    row = grid.Score("knn_accuracy", 0.5, note).row("", 300, {"kind": "probe"}, {"layer": 1, "timestep": 0.1})
    lines = _confusions([row, dataclasses.replace(row, value=0.4, note=None)])[0].splitlines()
    assert lines[0].endswith("the best of 2 cells; most frequent mistakes")
    assert lines[1].split() == ["class", "answer", "images", "share"]
    assert len(lines) == 22


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("--probes svm", "probe svm: choose of linear, knn, linear-bn, logistic"),
        ("--shots 0", "'--shots': 0 is not in the range"),
        ("--shots 5000", "5000 shots: class 0 has"),
        ("--probe-lr fast", "--probe-lr 'fast': expected numbers joined by commas"),
        ("--probe-lr -1", "--probe-lr '-1': a learning rate is above 0"),
        ("--probe-epochs 0", "'--probe-epochs': 0 is not in the range"),
    ],
)
def test_what_cannot_be_probed_is_one_line(ckpt: Path, words: str, text: str) -> None:
    done = command(ckpt, *words.split())
    assert (done.stdout, done.exit_code) == ("", 2)
    assert done.stderr.startswith("error: ")
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1


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
