"""Euler-Maruyama along the reverse SDE from noise (t = 1) to data (t = 0), as REPA samples its published results."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from repa_eval.diffusion.guidance import Guidance, guided_velocity
from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.diffusion.model import DiffusionModel

LAST_STEP = 0.04  # the noise-free step from here to 0


@torch.no_grad()
def sample_sde(
    model: DiffusionModel,
    noise: Tensor,
    labels: Tensor,
    *,
    num_steps: int,
    step_noise: Callable[[], Tensor],
    interpolant: Interpolant,
    guidance: Guidance,
) -> Tensor:
    """Return latents (B, C, H, W), float64, for noise (B, C, H, W) and labels (B,); num_steps model calls.

    Times are linspace(1, 0.04, num_steps), then 0. dx = (v - w/2 score) dt + sqrt(w dt) e with w = 2 t for every path
    (the paper prints w = sigma; its authors call that a typo, REPA issue 52), and no noise in the last step.
    step_noise: gives the next standard normal tensor of x's shape.
    """
    times = [*torch.linspace(1.0, LAST_STEP, num_steps, dtype=torch.float64).tolist(), 0.0]
    x = noise.double()
    for now, after in pairwise(times):
        # the drift is affine in the velocity: guiding one is guiding the other
        velocity = guided_velocity(model, x, now, labels, guidance, guided=guidance.applies(now), dtype=noise.dtype)
        diffusion = 2 * now
        x_next = x + (after - now) * (velocity - 0.5 * diffusion * score(x, velocity, now, interpolant))
        if after > 0:
            x_next = x_next + math.sqrt(diffusion) * math.sqrt(now - after) * step_noise().to(x)
        x = x_next
    return x


def score(x: Tensor, velocity: Tensor, t: float, interpolant: Interpolant) -> Tensor:
    """Return the score (B, C, H, W) that a velocity implies at x and t (SiT, equation 9, in this convention)."""
    alpha, sigma, d_alpha, d_sigma = interpolant.coefficients(torch.tensor(t, dtype=torch.float64, device=x.device))
    ratio = alpha / d_alpha
    return (ratio * velocity - x) / (sigma**2 - ratio * d_sigma * sigma)
