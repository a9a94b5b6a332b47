"""Latent and class token sampled together, as REG does (arXiv 2507.01467); the class token is thrown away at the end.

The published code samples by the SDE alone; the ODE here is our own (Euler or Heun for both) and recorded as such.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from repa_eval.config import option
from repa_eval.diffusion.conventions import answers_two_velocities
from repa_eval.diffusion.guidance import Guidance, null_of
from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.diffusion.model import DiffusionModel
from repa_eval.interfaces.sampler import SamplerSettings, named, sampler
from repa_eval.sampling.samplers.shared.sde import MODES, check_steps, ode_times, sde_step, sde_times, solver_name

Pair = tuple[Tensor, Tensor]  # latent (B, C, H, W) and class token (B, Z)


@dataclass(frozen=True, kw_only=True)
class JointOptions:
    """Options of REG's sampler."""

    mode: str = option("ode", help="ODE (not of the published code) or SDE of both states", choices=MODES)
    heun: bool = option(False, help="ode: Heun instead of Euler steps")
    cls_cfg_scale: float = option(0.0, help="guidance of the class token; 0 = it stays conditional")

    def __post_init__(self) -> None:
        check_steps(self.mode, heun=self.heun)


def record(settings: SamplerSettings) -> dict[str, object]:
    """Return solver, model calls and the scale of the class token."""
    options: JointOptions = settings.options
    solver = solver_name(options.mode, heun=options.heun)
    solver += " (not of the published code)" if options.mode == "ode" else ""
    nfe = 2 * settings.num_steps - 1 if options.heun else settings.num_steps
    return {**named(settings), "solver": solver, "nfe": nfe, "cls_cfg_scale": options.cls_cfg_scale}


@sampler(
    "joint",
    applies=answers_two_velocities,
    default_for=answers_two_velocities,
    named_in_runs=False,
    options=JointOptions,
    uint8="floor",
    record=record,
)
def integrate(
    model: DiffusionModel, noise: Tensor, y: Tensor, indices: Sequence[int], settings: SamplerSettings
) -> Tensor:
    """REG's, of latent and class token together."""
    options: JointOptions = settings.options
    width = (model.class_token_width,)
    token = settings.draws("class noise", indices, width)().to(noise)
    common: dict[str, Any] = {
        "num_steps": settings.num_steps, "guidance": settings.guidance, "cls_cfg_scale": options.cls_cfg_scale,
    }  # fmt: skip
    if options.mode == "ode":
        return sample_joint_ode(model, (noise, token), y, heun=options.heun, **common)
    latent_draw = settings.draws("step noise", indices, noise.shape[1:])
    token_draw = settings.draws("class step noise", indices, width)
    return sample_joint_sde(
        model,
        (noise, token),
        y,
        step_noise=lambda: (latent_draw(), token_draw()),
        interpolant=settings.interpolant,
        **common,
    )


@torch.no_grad()
def sample_joint_sde(
    model: Any,
    noise: Pair,
    labels: Tensor,
    *,
    num_steps: int,
    step_noise: Callable[[], Pair],
    interpolant: Interpolant,
    guidance: Guidance,
    cls_cfg_scale: float = 0.0,
) -> Tensor:
    """Return latents (B, C, H, W), float64, by Euler-Maruyama; num_steps model calls.

    Times, drift and noise are those of `sample_sde`, for both states with the same t and independent noises.
    step_noise: gives the next standard normal draws, that of the latent first.
    """
    state = [part.double() for part in noise]
    field = _Field(model, labels, guidance, cls_cfg_scale, noise[0].dtype)
    for now, after in pairwise(sde_times(num_steps)):
        velocities = field(state[0], state[1], now, guided=guidance.applies(now))
        draws = step_noise() if after > 0 else (None, None)
        state = [
            sde_step(x, velocity, now, after, draw, interpolant)
            for x, velocity, draw in zip(state, velocities, draws, strict=True)
        ]
    return state[0]


@torch.no_grad()
def sample_joint_ode(
    model: Any,
    noise: Pair,
    labels: Tensor,
    *,
    num_steps: int,
    heun: bool = False,
    guidance: Guidance,
    cls_cfg_scale: float = 0.0,
) -> Tensor:
    """Return latents (B, C, H, W), float64, by the probability-flow ODE of both states, stepped as `sample_ode` does.

    Our own extension: there is no published ODE sampler to be equal to.
    """
    x, token = (part.double() for part in noise)
    field = _Field(model, labels, guidance, cls_cfg_scale, noise[0].dtype)
    for now, after in pairwise(ode_times(num_steps)):
        step, guided = after - now, guidance.applies(now)
        slope, token_slope = field(x, token, now, guided=guided)
        if heun and after > 0:
            ends = field(x + step * slope, token + step * token_slope, after, guided=guided)
            slope, token_slope = 0.5 * (slope + ends[0]), 0.5 * (token_slope + ends[1])
        x, token = x + step * slope, token + step * token_slope
    return x


class _Field:
    """The two velocities, guided apart: the class token by cls_cfg_scale, or not at all where that is 0 or less."""

    def __init__(self, model: Any, labels: Tensor, guidance: Guidance, cls_cfg_scale: float, dtype: torch.dtype):
        self.model, self.labels, self.guidance, self.dtype = model, labels, guidance, dtype
        self.cls_guidance = Guidance(cfg_scale=cls_cfg_scale)

    def __call__(self, x: Tensor, token: Tensor, t: float, *, guided: bool) -> Pair:
        """Return the velocities of latent and class token, float64, at states x and token (float64) and time t."""
        count, labels = len(x), self.labels
        if guided:  # both halves are given the same noisy class token
            x, token = torch.cat([x, x]), torch.cat([token, token])
            labels = torch.cat([labels, null_of(self.model, labels)])
        times = torch.full((len(x),), t, dtype=torch.float64, device=x.device)
        (velocity, class_velocity), _ = self.model(
            x.to(self.dtype), times.to(self.dtype), labels, cls_token=token.to(self.dtype)
        )
        velocity, class_velocity = velocity.double(), class_velocity.double()
        if not guided:
            return velocity, class_velocity
        halves = class_velocity[:count], class_velocity[count:]
        guided_token = self.cls_guidance.mix(*halves) if self.cls_guidance.cfg_scale > 0 else halves[0]
        return self.guidance.mix(velocity[:count], velocity[count:]), guided_token
