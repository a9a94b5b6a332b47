"""Probes of hidden states over layers and timesteps, with the teacher's own score as reference level -> rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.diffusion.model import NO_NULL_LABEL, DiffusionModel, check_taps
from repa_eval.errors import UserError
from repa_eval.features.capture import Capture
from repa_eval.features.hidden_states import hidden_features, model_record
from repa_eval.features.preflight import checked_input
from repa_eval.features.teacher import teacher_features
from repa_eval.interfaces.teacher import Teacher
from repa_eval.probes import kinds as known_kinds
from repa_eval.probes.batch_norm import Training
from repa_eval.probes.confusion import as_note, confusion
from repa_eval.probes.contract import Known, check_finite
from repa_eval.probes.kinds import kind_of
from repa_eval.probes.splits import Splits
from repa_eval.results import Row, make_row
from repa_eval.runtime.hashing import digest_module

__all__ = ["KINDS", "NAMES", "Splits", "probe", "protocol", "teacher_level"]

Array = np.ndarray[Any, Any]
KINDS: tuple[str, ...] = ("linear", "knn")  # those that are measured where nobody says which
NAMES = {name: kind.metric for name, kind in known_kinds.KINDS.items()}


@dataclass(frozen=True)
class Score:
    """What a probe of one layer says of the test images."""

    metric: str
    accuracy: float
    note: str | None

    def row(self, ending: str, n: int, record: Mapping[str, Any], cell: Mapping[str, Any]) -> Row:
        """Return the row; stderr is the binomial one of n test images."""
        error = float(np.sqrt(self.accuracy * (1 - self.accuracy) / n))
        columns = {"stderr": error, "n": n, "note": self.note, "protocol": record, **cell}
        return make_row(metric=f"{self.metric}{ending}", value=self.accuracy, **columns)


def probe(
    model: DiffusionModel,
    splits: Splits,
    *,
    layers: Sequence[int],
    timesteps: Sequence[float],
    kinds: Sequence[str] = KINDS,
    training: Training | None = None,
    capture: Capture | None = None,
    columns: Mapping[str, Any] | None = None,
    with_confusion: bool = False,
) -> list[Row]:
    """Return the test accuracy of each kind of probe for every timestep and layer.

    Features are token means under the null label, standardised with the training statistics (all but k-NN) or
    L2-normalised (k-NN). The noise of an image depends on the seed, its split and its index, not on layer or time.
    training: of linear-bn; its seed is that of the capture. capture: noise, batch size, cache; its stream is set here.
    with_confusion: notes hold which class was taken for which, see `confusion.as_note`.
    """
    check_taps(layers, model.depth)
    if not model.has_null_label:
        raise UserError(f"{NO_NULL_LABEL}; a probe would be given the very class that it is to tell")
    splits.check()
    capture = capture or Capture()
    training = replace(training or Training(), seed=capture.seed)
    weights_hash = digest_module(model) if capture.cache is not None else ""
    reads = [checked_input(model, images, capture) for images in splits.parts().values()][-1].record()
    records = {
        kind: protocol(splits, capture.interpolant, kind=kind, seed=capture.seed, training=training)
        | model_record(model)
        | reads
        | capture.class_token_record
        for kind in kinds
    }
    rows = []
    for t in timesteps:
        features = {
            name: hidden_features(
                model,
                images,
                layers=layers,
                t=t,
                capture=replace(capture, stream=f"probe {name}"),
                weights_hash=weights_hash,
            )
            for name, images in splits.parts().items()
        }
        if not capture.share.first:
            continue
        by_layer = {layer: {name: found[layer] for name, found in features.items()} for layer in layers}
        names = {layer: f"layer {layer} at t={t:g}" for layer in layers}
        found = _scores({names[layer]: by_layer[layer] for layer in layers}, splits, kinds, training, with_confusion)
        for layer in layers:
            cell = {"layer": layer, "timestep": float(t), "seed": capture.seed, **(columns or {})}
            scores = found[names[layer]]
            rows += [score.row("", len(splits.test), records[kind], cell) for kind, score in scores.items()]
    return rows


def teacher_level(
    teacher: Teacher,
    splits: Splits,
    *,
    kinds: Sequence[str] = KINDS,
    training: Training | None = None,
    capture: Capture | None = None,
    columns: Mapping[str, Any] | None = None,
    with_confusion: bool = False,
) -> list[Row]:
    """Return the test accuracy of the same probes on the teacher's features of clean images."""
    splits.check()
    training = replace(training or Training(), seed=capture.seed if capture else 0)
    features = {name: teacher_features(teacher, images, capture=capture) for name, images in splits.parts().items()}
    if capture is not None and not capture.share.first:
        return []
    record = {
        "kind": "probe",
        "features": f"teacher {teacher.name}",
        "teacher_hash": teacher.digest,
        "pooling": "token mean",
        **splits.record(),
    }
    name = f"teacher {teacher.name}"
    scores = _scores({name: features}, splits, kinds, training, with_confusion)[name]
    return [
        score.row("_teacher", len(splits.test), {**record, **_recipe(kind, training)}, columns or {})
        for kind, score in scores.items()
    ]


def protocol(
    splits: Splits, interpolant: Interpolant, *, kind: str, seed: int, training: Training | None = None
) -> dict[str, Any]:
    """Return the record that stands beside the rows of one kind of probe of hidden states."""
    return {
        "kind": "probe",
        "features": "hidden states",
        "pooling": "token mean",
        "label": "null",
        "t_convention": "t=1 noise",
        "path_type": interpolant.path_type,
        "seed": seed,
        **_recipe(kind, replace(training or Training(), seed=seed)),
        **splits.record(),
    }


def _recipe(kind: str, training: Training) -> dict[str, Any]:
    chosen = kind_of(kind)
    return {"probe": chosen.text(training), **({"seed": training.seed} if chosen.drawn else {})}


def _scores(
    features: Mapping[str, Mapping[str, Array]],
    splits: Splits,
    kinds: Sequence[str],
    training: Training,
    with_confusion: bool,
) -> dict[str, dict[str, Score]]:
    """Return {layer: {kind: score}} for features {layer: {part: (N, D)}}; what fits the probes is not given test."""
    for layer, parts in features.items():
        for part, values in parts.items():
            check_finite(values, layer, part)
    known = Known(
        [parts["train"] for parts in features.values()],
        splits.labels["train"],
        [parts["val"] for parts in features.values()],
        splits.labels["val"],
        splits.train.num_classes,
    )
    found: dict[str, dict[str, Score]] = {layer: {} for layer in features}
    for name in kinds:
        kind = kind_of(name)
        for (layer, parts), fitted in zip(features.items(), kind.fit(known, training), strict=True):
            predicted = fitted.predict(parts["test"])
            accuracy = float((predicted == splits.labels["test"]).mean())
            note = fitted.remark
            if with_confusion:
                note = as_note(confusion(splits.labels["test"], predicted), chosen=fitted.chosen, remark=note)
            found[layer][name] = Score(kind.metric, accuracy, note)
    return found
