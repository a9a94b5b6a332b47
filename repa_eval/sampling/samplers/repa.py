"""The probability-flow ODE from noise (t = 1) to data (t = 0), as REPA integrates it (its samplers.py)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from repa_eval.diffusion.guidance import Guidance, guided_velocity
from repa_eval.diffusion.model import DiffusionModel


@torch.no_grad()
def sample_ode(
    model: DiffusionModel, noise: Tensor, labels: Tensor, *, num_steps: int, heun: bool = False, guidance: Guidance
) -> Tensor:
    """Return latents (B, C, H, W), float64, for noise (B, C, H, W) and labels (B,).

    Times are linspace(1, 0, num_steps + 1), the state is float64, the model is called in the dtype of the noise.
    heun: average with the slope at the next time; the last step stays Euler, and whether the second call is guided
    is decided at t, as published. Cost: num_steps calls, or 2 num_steps - 1.
    """
    times = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64).tolist()
    x = noise.double()
    for now, after in pairwise(times):
        guided = guidance.applies(now)
        slope = guided_velocity(model, x, now, labels, guidance, guided=guided, dtype=noise.dtype)
        ahead = x + (after - now) * slope
        if heun and after > 0:
            second = guided_velocity(model, ahead, after, labels, guidance, guided=guided, dtype=noise.dtype)
            ahead = x + (after - now) * 0.5 * (slope + second)
        x = ahead
    return x
