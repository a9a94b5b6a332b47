"""What training methods share: the velocity loss, label dropout, and the cosine to a teacher's tokens."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from repa_eval.diffusion import ddpm_schedule as diffusion
from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.diffusion.model import DiffusionModel
from repa_eval.errors import UserError
from repa_eval.interfaces.method import Batch
from repa_eval.runtime.seeding import normal, uniform


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
    model: DiffusionModel,
    batch: Batch,
    interpolant: Interpolant,
    *,
    cfg_prob: float,
    taps: Collection[int] = (),
    attention: Collection[int] = (),
) -> tuple[Tensor, dict[Any, Tensor]]:
    """Return (squared velocity error per sample (B,), {layer: hidden (B, N, D)}) (REPA, section 2).

    attention: layers whose logits are wanted: hidden["attention", layer] (B, heads, N, N), of models that give them.
    """
    t = interpolant.times(batch.draws["time"].flatten())
    noise = batch.draws["noise"]
    y = drop_labels(batch.y, batch.draws["drop"], cfg_prob, model.null_label)
    asked: dict[str, Any] = {"taps": taps, **({"attention": attention} if attention else {})}
    prediction, hidden = model(interpolant.mix(batch.x, noise, t), t, y, **asked)
    error = prediction.float() - interpolant.velocity(batch.x, noise, t)
    return error.square().flatten(1).mean(1), hidden


def noise_loss(
    model: DiffusionModel, batch: Batch, *, cfg_prob: float, taps: Collection[int] = ()
) -> tuple[dict[str, Tensor], dict[Any, Tensor]]:
    """Return DDPM's losses of a noise prediction with learned variance, mse and vb (B,), and {layer: hidden}.

    DiT's objective, U-DiT's too (arXiv 2212.09748). The uniform draw "time" picks the step: `ddpm_steps`.
    """
    y = drop_labels(batch.y, batch.draws["drop"], cfg_prob, model.null_label)
    hidden: dict[Any, Tensor] = {}

    def predict(x: Tensor, steps: Tensor) -> Tensor:
        out, tapped = model(x, steps, y, taps=taps)
        hidden.update(tapped)
        return out.float()

    schedule = diffusion.linear_schedule()
    found = diffusion.losses(predict, schedule, batch.x, batch.draws["noise"], ddpm_steps(batch.draws["time"]))
    return {"mse": found["mse"], "vb": found["vb"]}, hidden


def ddpm_steps(draw: Tensor) -> Tensor:
    """Return the steps 0..999 (B,), int64, of uniform draws in [0, 1), 999 = noise."""
    return (draw.flatten() * diffusion.TRAIN_STEPS).long()


def cosine_alignment(targets: Sequence[Tensor], projected: Sequence[Tensor]) -> Tensor:
    """Return minus the mean cosine over teachers, samples and tokens: a scalar in [-1, 1] (REPA, equation 8).

    targets, projected: one (B, T, D) per teacher. Norms are taken in float32: fp16 norms overflow into NaN.
    """
    refuse_other_grids(targets, projected)
    cosines = [
        F.cosine_similarity(z.float(), h.float(), dim=-1, eps=1e-12).mean()
        for z, h in zip(targets, projected, strict=True)
    ]
    return -torch.stack(cosines).mean()


def refuse_other_grids(targets: Sequence[Tensor], projected: Sequence[Tensor]) -> None:
    """UserError unless every teacher gives as many tokens as the model has: broadcasting would hide one token."""
    for z, h in zip(targets, projected, strict=True):
        if z.shape[1] != h.shape[1]:
            raise UserError(f"a teacher gives {z.shape[1]} tokens per image, the model has {h.shape[1]}")


def sample_cosines(targets: Sequence[Tensor], projected: Sequence[Tensor]) -> Tensor:
    """Return the cosine of every sample (B,), the mean over teachers and tokens; arguments as `cosine_alignment`."""
    cosines = [
        F.cosine_similarity(z.float(), h.float(), dim=-1, eps=1e-12).mean(1)
        for z, h in zip(targets, projected, strict=True)
    ]
    return torch.stack(cosines).mean(0)


def token_contrast(targets: Sequence[Tensor], projected: Sequence[Tensor], temperature: float) -> Tensor:
    """Return the NT-Xent loss (B,) of tokens: each projected one must find its own among the teacher's of its image.

    REPA's table names NT-Xent, its code has none: that the negatives are the other tokens of the same image is our own
    choice, by which a sample's loss depends on no other sample. Arguments as `cosine_alignment`; mean over teachers.
    """
    losses = []
    for z, h in zip(targets, projected, strict=True):
        with torch.autocast(h.device.type, enabled=False):  # a matrix product would go to half precision
            logits = F.normalize(h.float(), dim=-1) @ F.normalize(z.float(), dim=-1).transpose(1, 2) / temperature
            own = torch.arange(logits.shape[1], device=h.device).expand(len(h), -1)
            losses.append(F.cross_entropy(logits.transpose(1, 2), own, reduction="none").mean(1))
    return torch.stack(losses).mean(0)
