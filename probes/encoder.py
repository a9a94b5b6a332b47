"""What an encoder or a classifier of the embedded data knows about test images: the numbers on its card."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from repa_eval.interfaces.images import Images, to_signed
from repa_eval.probes import linear
from repa_eval.probes.knn import knn_accuracy

Array = np.ndarray[Any, Any]
NUM_TRAIN, NUM_TEST, NUM_PATCH_TRAIN = 6000, 3000, 3000
INK = 100  # mean grey level above which a patch holds ink
STRENGTH = 10.0  # fixed, so that nothing is chosen on the test images


@torch.no_grad()
def encoder_facts(network: nn.Module, train: Images, test: Images) -> dict[str, float]:
    """Return accuracies of a ViT's features on test images, probes fitted on training images, beside raw pixels'."""
    train, test = train.head(min(NUM_TRAIN, len(train))), test.head(min(NUM_TEST, len(test)))
    tokens_train, tokens_test = (_patches(network, images) for images in (train, test))
    pooled_train, pooled_test = tokens_train.mean(1), tokens_test.mean(1)
    raw_train, raw_test = (images.images.reshape(len(images), -1).astype(np.float32) for images in (train, test))
    inked = slice(0, NUM_PATCH_TRAIN)
    per_patch = linear.fit(*_inked(tokens_train[inked], train.images[inked], train.labels[inked]), strength=STRENGTH)
    return {
        "k-NN accuracy of the mean token (k 20)": knn_accuracy(pooled_train, train.labels, pooled_test, test.labels),
        "linear accuracy of the mean token": _linear(pooled_train, train.labels, pooled_test, test.labels),
        "linear accuracy of one inked patch token": per_patch.score(*_inked(tokens_test, test.images, test.labels)),
        "for comparison, k-NN accuracy of raw pixels": knn_accuracy(raw_train, train.labels, raw_test, test.labels),
        "for comparison, linear accuracy of raw pixels": _linear(raw_train, train.labels, raw_test, test.labels),
        "share of the tokens' variance that their position explains": _position_share(tokens_test),
    }


@torch.no_grad()
def classifier_facts(network: nn.Module, test: Images) -> dict[str, float]:
    """Return the accuracy of a classifier on the untouched and on the augmented test images."""
    correct = network.eval()(to_signed(torch.from_numpy(test.images)))[0].argmax(1).numpy() == test.labels
    untouched = 360
    return {
        "accuracy on the untouched test digits": float(correct[:untouched].mean()),
        "accuracy on augmented test digits": float(correct[untouched:].mean()),
    }


def _patches(network: nn.Module, images: Images) -> Array:
    tokens, _ = network.eval()(to_signed(torch.from_numpy(images.images)))
    scaled = (tokens[:, 1:] - network.feature_mean) / network.feature_std
    result: Array = scaled.numpy()
    return result


def _linear(train: Array, train_labels: Array, test: Array, test_labels: Array) -> float:
    return linear.fit(train, train_labels, strength=STRENGTH).score(test, test_labels)


def _inked(tokens: Array, images: Array, labels: Array) -> tuple[Array, Array]:
    """Return the tokens (M, D) and labels (M,) of the patches that hold ink."""
    count, patches = tokens.shape[:2]
    side = int(patches**0.5)
    size = images.shape[-1] // side
    grey = images.reshape(count, side, size, side, size).mean((2, 4)).reshape(count, patches)
    return tokens[grey > INK], np.repeat(labels[:, None], patches, axis=1)[grey > INK]


def _position_share(tokens: Array) -> float:
    """Return the variance of the mean token over positions by the total variance: high = tokens differ by place."""
    return float(tokens.mean(0).var(0).sum() / tokens.reshape(-1, tokens.shape[-1]).var(0).sum())
