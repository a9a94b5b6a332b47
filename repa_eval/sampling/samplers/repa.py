"""REPA's ODE and SDE from noise (t = 1) to data (t = 0), for every model that answers a velocity (its samplers.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from repa_eval.config import option
from repa_eval.diffusion.guidance import Guidance, guided_velocity
from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.diffusion.model import DiffusionModel
from repa_eval.interfaces.sampler import SamplerSettings, sampler
from repa_eval.sampling.samplers.shared.sde import MODES, check_steps, ode_times, sde_step, sde_times, solver_name


@dataclass(frozen=True, kw_only=True)
class RepaOptions:
    """Options of REPA's sampler."""

    mode: str = option("ode", help="probability-flow ODE or reverse SDE", choices=MODES)
    heun: bool = option(False, help="ode: Heun instead of Euler steps")

    def __post_init__(self) -> None:
        check_steps(self.mode, heun=self.heun)


def record(settings: SamplerSettings) -> dict[str, object]:
    """Return the solver alone: rows measured before samplers had names carry no more."""
    return {"solver": solver_name(settings.options.mode, heun=settings.options.heun)}


@sampler("repa", options=RepaOptions, uint8="floor", record=record)
def integrate(
    model: DiffusionModel, noise: Tensor, y: Tensor, indices: Sequence[int], settings: SamplerSettings
) -> Tensor:
    """REPA's ODE and SDE, for every model that answers a velocity."""
    options: RepaOptions = settings.options
    if options.mode == "ode":
        return sample_ode(model, noise, y, num_steps=settings.num_steps, heun=options.heun, guidance=settings.guidance)
    return sample_sde(
        model,
        noise,
        y,
        num_steps=settings.num_steps,
        step_noise=settings.draws("step noise", indices, noise.shape[1:]),
        interpolant=settings.interpolant,
        guidance=settings.guidance,
    )


@torch.no_grad()
def sample_ode(
    model: DiffusionModel, noise: Tensor, labels: Tensor, *, num_steps: int, heun: bool = False, guidance: Guidance
) -> Tensor:
    """Return latents (B, C, H, W), float64, for noise (B, C, H, W) and labels (B,).

    Times are linspace(1, 0, num_steps + 1), the state is float64, the model is called in the dtype of the noise.
    heun: average with the slope at the next time; the last step stays Euler, and whether the second call is guided
    is decided at t, as published. Cost: num_steps calls, or 2 num_steps - 1.
    """
    x = noise.double()
    for now, after in pairwise(ode_times(num_steps)):
        guided = guidance.applies(now)
        slope = guided_velocity(model, x, now, labels, guidance, guided=guided, dtype=noise.dtype)
        ahead = x + (after - now) * slope
        if heun and after > 0:
            second = guided_velocity(model, ahead, after, labels, guidance, guided=guided, dtype=noise.dtype)
            ahead = x + (after - now) * 0.5 * (slope + second)
        x = ahead
    return x


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
    """Return latents (B, C, H, W), float64, by Euler-Maruyama, as REPA samples its published results.

    Noise is (B, C, H, W), labels (B,). Times are `sde_times`, steps `sde_step`, the last one without noise; num_steps
    model calls. step_noise: gives the next standard normal tensor of x's shape.
    """
    x = noise.double()
    for now, after in pairwise(sde_times(num_steps)):
        # the drift is affine in the velocity: guiding one is guiding the other
        velocity = guided_velocity(model, x, now, labels, guidance, guided=guidance.applies(now), dtype=noise.dtype)
        x = sde_step(x, velocity, now, after, step_noise() if after > 0 else None, interpolant)
    return x
