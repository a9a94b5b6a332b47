"""Linear probe as REPA trains it: batch norm without parameters, then a linear layer; Adam, cosine decay to 0.

arXiv 2410.06940, appendix C.1 (90 epochs, batch 16,384, learning rate 0.001, ImageNet), in the setup of MAE's linear
probe (batch norm with eps 1e-6). The heads of all layers and learning rates are trained together, as one product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from repa_eval.config import option
from repa_eval.errors import UserError
from repa_eval.probes.linear import Linear, statistics
from repa_eval.runtime.seeding import permutation

Array = np.ndarray[Any, Any]
EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the heads are trained. The paper's batch is larger than our whole training set: one step an epoch."""

    epochs: int = option(90, help="passes over the training images; the paper: 90")
    batch_size: int = option(128, help="images per step; the paper: 16384")
    rates: tuple[float, ...] = option(
        (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0),
        help="learning rates, of which the best on val is taken; the paper: 0.001",
    )
    seed: int = option(0, help="of the order of the images")
    device: str = option("cpu", help="where the heads are trained")

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2:
            raise UserError(f"{self.epochs} epochs of batches of {self.batch_size}: at least 1 and 2 are needed")
        if not self.rates or not all(0 < rate < float("inf") for rate in self.rates):
            raise UserError(f"learning rates {', '.join(map(str, self.rates)) or '(none)'}: give positive numbers")

    def text(self) -> str:
        """Return what the protocol says of the training."""
        rates = ", ".join(f"{rate:g}" for rate in self.rates)
        rate = f"learning rate {rates}" + (" chosen on val" if len(self.rates) > 1 else "")
        return (
            f"batch norm without parameters, linear from 0, Adam, cosine to 0, {self.epochs} epochs, "
            f"batch {self.batch_size}, {rate}"
        )


def fit_layers(
    layers: Sequence[Array], labels: Array, *, num_classes: int, training: Training | None = None
) -> list[list[Linear]]:
    """Return, for the features (N, D) of every layer, a probe for every learning rate, the smallest rate first.

    Batches are normalised by their own statistics; the probes by those of all training images, to which the running
    ones of nn.BatchNorm1d tend (theirs still hold 0 and 1, where they began, after few steps).
    """
    training = training or Training()
    found: dict[int, list[Linear]] = {}
    for width in dict.fromkeys(features.shape[1] for features in layers):
        members = [place for place, features in enumerate(layers) if features.shape[1] == width]
        moments = [statistics(layers[place]) for place in members]
        weights = _train([layers[place] for place in members], moments, labels, num_classes, training)
        for place, (mean, scale), own in zip(members, moments, weights, strict=True):  # own (R, D + 1, K)
            own = own / np.array([[(1 + EPS) ** 0.5]] * width + [[1.0]])
            rates = zip(sorted(training.rates), own, strict=True)
            found[place] = [Linear(mean, scale, head[:-1], head[-1], rate) for rate, head in rates]
    return [found[place] for place in range(len(layers))]


def _train(
    layers: Sequence[Array],
    moments: Sequence[tuple[Array, Array]],
    labels: Array,
    num_classes: int,
    training: Training,
) -> Array:
    """Return weights (L, R, D + 1, K), float64, the last of D + 1 being the bias; L layers of one width, R rates."""
    rates, shape = sorted(training.rates), (len(layers), layers[0].shape[1] + 1, num_classes)
    heads = [torch.zeros(shape, device=training.device) for _ in rates]
    optimizer = torch.optim.Adam({"params": [head], "lr": rate} for head, rate in zip(heads, rates, strict=True))
    steps = list(_batches(len(labels), training))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(steps))
    targets = torch.from_numpy(labels.astype(np.int64))
    for rows in steps:
        x = torch.stack([_standardised(each[rows], *own) for each, own in zip(layers, moments, strict=True)])
        wanted = F.one_hot(targets[rows], num_classes).float()
        gradients = _gradients(heads, x.to(training.device), wanted.to(training.device))
        for head, gradient in zip(heads, gradients, strict=True):
            head.grad = gradient
        optimizer.step()
        schedule.step()
    found: Array = torch.stack(heads, dim=1).cpu().double().numpy()
    return found


def _gradients(heads: Sequence[Tensor], x: Tensor, wanted: Tensor) -> Sequence[Tensor]:
    """Return the gradient of every head (L, D + 1, K): cross-entropy, the mean over the batch, of each layer alone.

    x (L, B, D), wanted (B, K). All heads in one product; the gradient of cross-entropy is softmax - target.
    """
    inputs = F.pad(normalised(x), (0, 1), value=1.0)  # (L, B, D + 1)
    logits = torch.bmm(inputs, torch.cat(list(heads), dim=2)).unflatten(2, (len(heads), -1))  # (L, B, R, K)
    error = logits.softmax(dim=3).sub_(wanted[:, None]).flatten(2)
    return torch.bmm(inputs.mT, error).div_(x.shape[1]).chunk(len(heads), dim=2)


def normalised(x: Tensor) -> Tensor:
    """Return x (L, B, D) with mean 0 and variance 1 over the batch: nn.BatchNorm1d in training, without parameters."""
    centred = x - x.mean(1, keepdim=True)
    return centred * (centred.square().mean(1, keepdim=True) + EPS).rsqrt()


def _standardised(features: Array, mean: Array, scale: Array) -> Tensor:
    """Return float32 (B, D): of no effect on batch norm but that a large mean costs no digits, and eps has a unit."""
    return torch.from_numpy(((features.astype(np.float64) - mean) / scale).astype(np.float32))


def _batches(count: int, training: Training) -> Iterator[Array]:
    """Yield the rows of every step: each epoch in an order of its own, in batches of equal size."""
    for epoch in range(training.epochs):
        order = permutation(count, training.seed, "probe", epoch).numpy()
        yield from np.array_split(order, -(-count // training.batch_size))
