"""SoftREPA's errors and loss (arXiv 2503.08250): how well every caption of a batch explains every image of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from repa_eval.diffusion.ddpm_schedule import Schedule, q_sample

# from noisy images (P, C, H, W) and the numbers of their captions (P,) to the prediction (P, C, H, W)
Predict = Callable[[Tensor, Tensor], Tensor]
TRAIN_STEPS = 1000


def flow_pair(x: Tensor, noise: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Return (noisy images, target noise - x) of SD3 at a step of 0..1000, unshifted, for one noise (1, C, H, W)."""
    t = step / TRAIN_STEPS
    return (1 - t) * x + t * noise, noise - x


def noise_pair(x: Tensor, noise: Tensor, step: int, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """Return (noisy images, target noise) of a network that predicts noise at a step of a diffusion."""
    whole = noise.expand_as(x)
    return q_sample(schedule, x, whole, torch.full((len(x),), step)), whole


def scaled_linear_schedule(first: float = 0.00085, last: float = 0.012, num_steps: int = TRAIN_STEPS) -> Schedule:
    """Return Stable Diffusion's betas: squares of a line from the root of the first to that of the last."""
    roots = torch.linspace(first**0.5, last**0.5, num_steps, dtype=torch.float64)
    return Schedule(roots.square(), torch.arange(num_steps))


def pair_errors(predict: Predict, noisy: Tensor, target: Tensor, num_captions: int) -> Tensor:
    """Return the mean squared error of image i under caption j, (R, num_captions); all with gradients."""
    rows = len(noisy)
    pairs = (rows, num_captions)
    captions = torch.arange(num_captions, device=noisy.device).repeat(rows)
    predicted = predict(noisy.repeat_interleave(num_captions, dim=0), captions)
    errors = predicted.float() - target.repeat_interleave(num_captions, dim=0).float()
    return errors.square().flatten(1).mean(1).unflatten(0, pairs)


def contrastive_losses(
    errors: Tensor, own: Tensor, *, temp: float | Tensor, scale: float | Tensor, same: Tensor | None = None
) -> Tensor:
    """Return -log softmax_j(scale exp(-e_ij / temp)) at j = own_i, (R,), of errors (R, C) and own captions (R,).

    The logits lie in (0, scale]: the loss stays above log(1 + (C - 1) exp(-scale)). same (R, C): captions that are
    the image's own in other words' places, which are no negatives; its own may be among them.
    """
    logits = scale * torch.exp(-errors / temp)
    if same is not None:
        others = same.scatter(1, own[:, None], False)
        logits = logits.masked_fill(others, float("-inf"))
    return -logits.log_softmax(dim=1).gather(1, own[:, None])[:, 0]
