"""Ancestral sampling of DiT and U-DiT: DDPM on respaced steps with a learned variance, no clipping of x_0."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from repa_eval.diffusion.conventions import predicts_noise, unwrap
from repa_eval.diffusion.ddpm_schedule import linear_schedule, reverse
from repa_eval.diffusion.guidance import Guidance, null_of
from repa_eval.diffusion.model import DiffusionModel
from repa_eval.errors import UserError
from repa_eval.interfaces.sampler import SamplerSettings, named, sampler

SOLVER = "ancestral, learned-range variance, linear betas, 1000 steps respaced evenly, no clipping"


def record(settings: SamplerSettings) -> dict[str, object]:
    """Return solver and network calls."""
    return {**named(settings), "solver": SOLVER, "nfe": settings.num_steps}


@sampler(
    "ddpm",
    applies=predicts_noise,
    default_for=predicts_noise,
    named_in_runs=False,
    uint8="round",
    guided_channels=3,  # of a latent's four
    reads=(),
    least_steps=2,
    record=record,
)
def integrate(
    model: DiffusionModel, noise: Tensor, y: Tensor, indices: Sequence[int], settings: SamplerSettings
) -> Tensor:
    """DiT's and U-DiT's, on respaced diffusion steps."""
    return sample_ddpm(
        unwrap(model),
        noise,
        y,
        num_steps=settings.num_steps,
        step_noise=settings.draws("step noise", indices, noise.shape[1:]),
        guidance=settings.guidance,
    )


@torch.no_grad()
def sample_ddpm(
    network: Any,
    noise: Tensor,
    labels: Tensor,
    *,
    num_steps: int,
    step_noise: Callable[[], Tensor],
    guidance: Guidance,
) -> Tensor:
    """Return latents (B, C, H, W), float64, for noise (B, C, H, W) and labels (B,); num_steps network calls.

    network(x, steps, labels) answers noise and variance logits (B, 2C, H, W); steps are of the 1000 it was trained on.
    Guidance has no interval here; the channels it leaves out, the logits among them, are the conditional ones.
    step_noise: gives the next standard normal tensor; none is drawn for the last step.
    """
    schedule, x = linear_schedule().respaced(num_steps), noise.double()
    null = null_of(network, labels) if guidance.cfg_scale > 1.0 else None
    for step in reversed(range(num_steps)):
        network_steps = torch.full((len(x),), int(schedule.timestep_map[step]), device=x.device)
        out = _answer(network, x.to(noise.dtype), network_steps, labels, null, guidance).double()
        if out.shape[1] != 2 * x.shape[1]:
            raise UserError(f"this network answers {out.shape[1]} channels; {2 * x.shape[1]} hold a learned variance")
        predicted, logits = out.chunk(2, dim=1)
        mean, log_variance = reverse(schedule, x, torch.full((len(x),), step), predicted, logits)
        x = mean + torch.exp(0.5 * log_variance) * step_noise().to(x) if step else mean
    return x


def _answer(network: Any, x: Tensor, steps: Tensor, labels: Tensor, null: Tensor | None, guidance: Guidance) -> Tensor:
    if null is None:
        out: Tensor = network(x, steps, labels)[0]
        return out
    both = network(torch.cat([x, x]), torch.cat([steps, steps]), torch.cat([labels, null]))[0]
    conditional, unconditional = both.chunk(2)
    return guidance.mix(conditional, unconditional)
