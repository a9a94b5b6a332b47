"""Sampling and editing with Stable Diffusion 3's flow, as SoftREPA does (arXiv 2503.08250; FlowEdit, 2412.08629).

t = 1 is noise, sigma = t, velocity = noise - data; the network is given the timestep 1000 t. The times are those of
diffusers' scheduler, which applies its shift twice at the ends: they are taken from it, not recomputed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from repa_eval.config import option
from repa_eval.diffusion.conventions import answers_velocity
from repa_eval.diffusion.guidance import guided_velocity
from repa_eval.diffusion.model import DiffusionModel
from repa_eval.errors import UserError
from repa_eval.interfaces.sampler import INTERVAL, SamplerSettings, named, sampler

SHIFT = 3.0  # of Stable Diffusion 3
TRAIN_STEPS = 1000
# from state (B, C, H, W) and timestep (0..1000) to the velocity (B, C, H, W)
Velocity = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True, kw_only=True)
class FlowOptions:
    """Options of SD3's flow sampler."""

    shift: float = option(SHIFT, help="moves the times towards noise: t' = s t / (1 + (s - 1) t); 1 = none")

    def __post_init__(self) -> None:
        if self.shift <= 0:
            raise UserError(f"shift {self.shift}: it must be above 0")


def record(settings: SamplerSettings) -> dict[str, object]:
    """Return the solver, its network calls and the shift."""
    options: FlowOptions = settings.options
    solver = "euler, times of diffusers' FlowMatchEulerDiscreteScheduler"
    return {**named(settings), "solver": solver, "nfe": settings.num_steps, "shift": options.shift}


@sampler(
    "flow",
    applies=lambda model: model.conditioning == "text" and answers_velocity(model),
    options=FlowOptions,
    uint8="round",
    reads=(INTERVAL,),
    record=record,
)
def integrate(
    model: DiffusionModel, noise: Tensor, y: Tensor, indices: Sequence[int], settings: SamplerSettings
) -> Tensor:
    """Stable Diffusion 3's, for text-to-image models: Euler steps at shifted times."""
    options: FlowOptions = settings.options
    guidance = settings.guidance

    def velocity(x: Tensor, timestep: float) -> Tensor:
        t = timestep / TRAIN_STEPS
        return guided_velocity(model, x, t, y, guidance, guided=guidance.applies(t), dtype=noise.dtype)

    return sample_flow(velocity, noise.double(), flow_timesteps(settings.num_steps, shift=options.shift))


def flow_timesteps(num_steps: int, *, shift: float = SHIFT) -> list[float]:
    """Return the scheduler's timesteps, falling from 1000; UserError without diffusers."""
    try:
        from diffusers import FlowMatchEulerDiscreteScheduler
    except ImportError as error:
        raise UserError("the flow sampler needs diffusers: pip install 'repa-eval[latents]'") from error
    scheduler: Any = FlowMatchEulerDiscreteScheduler(num_train_timesteps=TRAIN_STEPS, shift=shift)
    scheduler.set_timesteps(num_steps)
    timesteps: list[float] = scheduler.timesteps.tolist()
    return timesteps


def guided(conditional: Velocity, null: Velocity, cfg_scale: float, *, flow_edit_target: bool = False) -> Velocity:
    """Return v_null + cfg_scale (v - v_null); with cfg_scale 1 the null branch is not run.

    flow_edit_target: v + cfg_scale (v - v_null), the form of the published editing code for its target, which is the
    usual one at cfg_scale + 1.
    """
    scale = cfg_scale + 1 if flow_edit_target else cfg_scale
    if scale == 1:
        return conditional

    def velocity(x: Tensor, timestep: float) -> Tensor:
        away = null(x, timestep)
        return away + scale * (conditional(x, timestep) - away)

    return velocity


@torch.no_grad()
def sample_flow(velocity: Velocity, noise: Tensor, timesteps: Sequence[float]) -> Tensor:
    """Return latents (B, C, H, W) by Euler steps from noise (B, C, H, W) through the timesteps to 0."""
    x = noise
    for timestep, step in _steps(timesteps):
        x = x + step * velocity(x, timestep)
    return x


@torch.no_grad()
def edit_flow(
    source: Velocity,
    target: Velocity,
    latents: Tensor,
    timesteps: Sequence[float],
    *,
    num_edited: int,
    step_noise: Callable[[], Tensor],
) -> Tensor:
    """Return the latents (B, C, H, W) edited from the source's prompt to the target's, without inversion.

    The last `num_edited` of the timesteps are used. Each draws a noise e: the source is seen at (1 - t) x + t e, the
    target displaced from there by what was edited so far, and the difference of their velocities is followed.
    """
    if not 1 <= num_edited <= len(timesteps):
        raise UserError(f"num_edited {num_edited}: there are {len(timesteps)} steps")
    edited = latents
    for timestep, step in _steps(timesteps)[-num_edited:]:
        t = timestep / TRAIN_STEPS
        seen = (1 - t) * latents + t * step_noise().to(latents)
        edited = edited + step * (target(edited + seen - latents, timestep) - source(seen, timestep))
    return edited


def _steps(timesteps: Sequence[float]) -> list[tuple[float, float]]:
    """Return (timestep, step of t) for each timestep; the last step leads to 0."""
    times = [*timesteps, 0.0]
    return [(now, (after - now) / TRAIN_STEPS) for now, after in pairwise(times)]
