"""What training methods share: the velocity loss, label dropout, and the cosine to a teacher's tokens."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from repa_eval.interpolant import Interpolant
from repa_eval.models.layers import DiffusionModel
from repa_eval.seeding import normal, uniform
from repa_eval.train.methods.base import Batch

LATENTS_SCALE = 0.18215  # SD-VAE latents to about unit variance


def posterior(moments: Tensor, eps: Tensor, *, log_variance: bool = False) -> Tensor:
    """Return latents (B, C, H, W) drawn from stored VAE moments (B, 2C, H, W) with eps (B, C, H, W).

    The second half of the channels is the STANDARD DEVIATION (REPA's train.py), or the log-variance, clamped to
    [-30, 20], in the layout of its text-to-image experiment.
    """
    mean, spread = moments.chunk(2, dim=1)
    std = torch.exp(0.5 * spread.clamp(-30.0, 20.0)) if log_variance else spread
    return (mean + std * eps) * LATENTS_SCALE


def denoising_draws(batch: Batch, generators: Sequence[torch.Generator], interpolant: Interpolant) -> dict[str, Tensor]:
    """Return the draws of the velocity loss, in REPA's order: time, noise, label drop."""
    time = uniform(generators) if interpolant.weighting == "uniform" else normal(generators, ())
    return {
        "time": time,  # (B,) raw draw, see Interpolant.times
        "noise": normal(generators, batch.x.shape[1:]),  # (B, C, H, W)
        "drop": uniform(generators),  # (B,)
    }


def drop_labels(y: Tensor, draw: Tensor, prob: float, null_label: int) -> Tensor:
    """Return labels (B,) with the null label where draw (B,) < prob."""
    return torch.where(draw < prob, torch.full_like(y, null_label), y)


def velocity_loss(
    model: DiffusionModel, batch: Batch, interpolant: Interpolant, *, cfg_prob: float, taps: Collection[int] = ()
) -> tuple[Tensor, dict[int, Tensor]]:
    """Return (squared velocity error per sample (B,), {layer: hidden (B, N, D)}) (REPA, section 2)."""
    t = interpolant.times(batch.draws["time"].flatten())
    noise = batch.draws["noise"]
    y = drop_labels(batch.y, batch.draws["drop"], cfg_prob, model.null_label)
    prediction, hidden = model(interpolant.mix(batch.x, noise, t), t, y, taps=taps)
    error = prediction.float() - interpolant.velocity(batch.x, noise, t)
    return error.square().flatten(1).mean(1), hidden


def cosine_alignment(targets: Sequence[Tensor], projected: Sequence[Tensor]) -> Tensor:
    """Return minus the mean cosine over teachers, samples and tokens: a scalar in [-1, 1] (REPA, equation 8).

    targets, projected: one (B, T, D) per teacher. Norms are taken in float32: fp16 norms overflow into NaN.
    """
    cosines = [
        F.cosine_similarity(z.float(), h.float(), dim=-1, eps=1e-12).mean()
        for z, h in zip(targets, projected, strict=True)
    ]
    return -torch.stack(cosines).mean()
