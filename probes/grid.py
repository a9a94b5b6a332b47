"""Probes of hidden states over layers and timesteps, with the teacher's own score as reference level -> rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from repa_eval.data._registry import Images
from repa_eval.errors import UserError
from repa_eval.features import ClassTokens, hidden_features, model_record, teacher_features
from repa_eval.interpolant import Interpolant
from repa_eval.models.layers import DiffusionModel, check_taps
from repa_eval.probes import linear
from repa_eval.probes.knn import knn_votes
from repa_eval.results import Row, make_row
from repa_eval.teachers._registry import Teacher

Array = np.ndarray[Any, Any]
KINDS = ("linear", "knn")
NAMES = {"linear": "probe_accuracy", "knn": "knn_accuracy"}
KS = (5, 10, 20, 50)


class Splits:
    """The three parts of a probe: it is fitted on train, its one setting is chosen on val, its score is test's."""

    def __init__(self, train: Images, val: Images, test: Images) -> None:
        self.train, self.val, self.test = train, val, test
        if min(map(len, (train, val, test))) < 1:
            raise UserError("a probe needs training, validation and test images")

    def record(self) -> dict[str, Any]:
        """Return the protocol entries of the images."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        sizes = {f"num_{name}": len(images) for name, images in parts.items()}
        hashes = {f"{name}_hash": images.digest() for name, images in parts.items()}
        return {"data": self.test.name, "split": self.test.split, **sizes, **hashes}


def probe(
    model: DiffusionModel,
    splits: Splits,
    *,
    layers: Sequence[int],
    timesteps: Sequence[float],
    kinds: Sequence[str] = KINDS,
    interpolant: Interpolant | None = None,
    seed: int = 0,
    class_tokens: ClassTokens | None = None,
    batch_size: int = 256,
    columns: Mapping[str, Any] | None = None,
) -> list[Row]:
    """Return the test accuracy of each kind of probe for every timestep and layer.

    Features are token means under the null label, standardised with the training statistics (linear) or
    L2-normalised (k-NN). The noise of an image depends on the seed, its split and its index, not on layer or time.
    stderr is the binomial one of the test images. class_tokens: see `hidden_features`.
    """
    check_taps(layers, model.depth)
    path = interpolant or Interpolant()
    records = {kind: protocol(splits, path, kind=kind, seed=seed) | model_record(model) for kind in kinds}
    rows = []
    for t in timesteps:
        features = {
            name: hidden_features(
                model,
                images,
                layers=layers,
                t=t,
                interpolant=path,
                seed=seed,
                stream=f"probe {name}",
                class_tokens=class_tokens,
                batch_size=batch_size,
            )
            for name, images in _parts(splits).items()
        }
        for layer in layers:
            scores = _scores({name: of_layer[layer] for name, of_layer in features.items()}, splits, kinds)
            cell = {"layer": layer, "timestep": float(t), "n": len(splits.test), "seed": seed, **(columns or {})}
            rows += [_row(NAMES[kind], score, len(splits.test), records[kind], cell) for kind, score in scores.items()]
    return rows


def teacher_level(
    teacher: Teacher,
    splits: Splits,
    *,
    kinds: Sequence[str] = KINDS,
    batch_size: int = 256,
    columns: Mapping[str, Any] | None = None,
) -> list[Row]:
    """Return the test accuracy of the same probes on the teacher's features of clean images."""
    features = {
        name: teacher_features(teacher, images, batch_size=batch_size) for name, images in _parts(splits).items()
    }
    record = {
        "kind": "probe",
        "features": f"teacher {teacher.name}",
        "teacher_hash": teacher.digest,
        "pooling": "token mean",
        **splits.record(),
    }
    cell = {"n": len(splits.test), **(columns or {})}
    scores = _scores(features, splits, kinds)
    return [
        _row(f"{NAMES[kind]}_teacher", score, len(splits.test), {**record, "probe": _recipe(kind)}, cell)
        for kind, score in scores.items()
    ]


def protocol(splits: Splits, interpolant: Interpolant, *, kind: str, seed: int) -> dict[str, Any]:
    """Return the record that stands beside the rows of one kind of probe of hidden states."""
    return {
        "kind": "probe",
        "features": "hidden states",
        "pooling": "token mean",
        "label": "null",
        "t_convention": "t=1 noise",
        "path_type": interpolant.path_type,
        "seed": seed,
        "probe": _recipe(kind),
        **splits.record(),
    }


def _recipe(kind: str) -> str:
    if kind not in KINDS:
        raise UserError(f"probe {kind}: choose of {', '.join(KINDS)}")
    if kind == "linear":
        return f"standardised, ridge, strength of {linear.STRENGTHS[0]:g}..{linear.STRENGTHS[-1]:g} chosen on val"
    return f"k-NN, cosine, temperature 0.07, k of {', '.join(map(str, KS))} chosen on val"


def _parts(splits: Splits) -> dict[str, Images]:
    return {"train": splits.train, "val": splits.val, "test": splits.test}


def _scores(features: Mapping[str, Array], splits: Splits, kinds: Sequence[str]) -> dict[str, float]:
    labels = {name: images.labels for name, images in _parts(splits).items()}
    scores = {}
    if "linear" in kinds:
        classes = splits.train.num_classes
        fitted = linear.fit_best(
            features["train"], labels["train"], features["val"], labels["val"], num_classes=classes
        )
        scores["linear"] = fitted.score(features["test"], labels["test"])
    if "knn" in kinds:
        ks = [k for k in KS if k <= len(labels["train"])] or [1]
        classes = splits.train.num_classes
        votes = {
            name: knn_votes(features["train"], labels["train"], features[name], ks=ks, num_classes=classes)
            for name in ("val", "test")
        }
        accuracy = {k: float((votes["val"][k].argmax(1) == labels["val"]).mean()) for k in ks}
        best = max(ks, key=lambda k: accuracy[k])
        scores["knn"] = float((votes["test"][best].argmax(1) == labels["test"]).mean())
    return scores


def _row(metric: str, value: float, n: int, record: Mapping[str, Any], cell: Mapping[str, Any]) -> Row:
    return make_row(metric=metric, value=value, stderr=float(np.sqrt(value * (1 - value) / n)), protocol=record, **cell)
