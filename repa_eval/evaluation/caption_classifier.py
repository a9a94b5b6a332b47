"""The judge of captions: a kernel SVM that reads the two digits of an embedded image with a caption.

It stands where ImageReward and CLIP scores stand for photographs. No network here was trained with it.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from repa_eval.errors import UserError
from repa_eval.interfaces.images import Images, in_memory, load_data

SIDE = 8
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class PairJudge:
    """classifier: scikit-learn's, of pixels in [0, 1] (N, 64). accuracy: on the digits that it was not trained on."""

    classifier: Any
    accuracy: float
    num_test: int
    digest: str

    def read(self, images: Array) -> Array:
        """Return the digits (N, 2), left and right, of uint8 images (N, 1, 8, 16)."""
        if images.shape[1:] != (1, SIDE, 2 * SIDE):
            given = "x".join(map(str, images.shape[1:]))
            raise UserError(f"the judge of captions reads images of 1x{SIDE}x{2 * SIDE}, not {given}")
        halves = np.concatenate([images[..., :SIDE], images[..., SIDE:]])
        digits: Array = self.classifier.predict(halves.reshape(len(halves), -1) / 255.0)
        return np.stack(np.split(digits, 2), axis=1)

    def right(self, images: Array, labels: Array) -> Array:
        """Return whether the left and the right digit are those of the caption, bool (N, 2); labels 10 left + right."""
        wanted = np.stack(np.divmod(np.asarray(labels), 10), axis=1)
        found: Array = self.read(images) == wanted
        return found

    def record(self) -> dict[str, Any]:
        """Return the entries of a protocol record."""
        return {"judge": "kernel SVM of digits", "judge_hash": self.digest, "judge_accuracy": round(self.accuracy, 4)}


@functools.cache
def pair_judge() -> PairJudge:
    """Return the judge, fitted on the 1,437 digits of `digits` trainval and scored on the 360 of its test split.

    C and gamma: the best of 5-fold cross-validation over the former (.991).
    """
    from sklearn.svm import SVC

    train, test = (in_memory(load_data("digits", split)) for split in ("trainval", "test"))
    classifier = SVC(C=10.0, gamma=0.08).fit(_flat(train), train.labels)
    content = hashlib.sha256(np.round(classifier.dual_coef_, 4).tobytes())
    content.update(classifier.support_.tobytes())
    accuracy = float((classifier.predict(_flat(test)) == test.labels).mean())
    return PairJudge(classifier, accuracy, len(test), content.hexdigest()[:12])


def _flat(images: Images) -> Array:
    return images.images.reshape(len(images), -1) / 255.0
