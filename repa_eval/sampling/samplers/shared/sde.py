"""Steps that the samplers in the project's own time share: t = 1 is noise, t = 0 data."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.errors import UserError

MODES = ("ode", "sde")
LAST_STEP = 0.04  # of the SDE: the noise-free step from here to 0


def sde_times(num_steps: int) -> list[float]:
    """Return linspace(1, 0.04, num_steps), then 0."""
    return [*torch.linspace(1.0, LAST_STEP, num_steps, dtype=torch.float64).tolist(), 0.0]


def ode_times(num_steps: int) -> list[float]:
    """Return linspace(1, 0, num_steps + 1)."""
    times: list[float] = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64).tolist()
    return times


def sde_step(
    x: Tensor, velocity: Tensor, now: float, after: float, draw: Tensor | None, interpolant: Interpolant
) -> Tensor:
    """Return the state (B, ...) at time `after`: dx = (v - w/2 score) dt + sqrt(w dt) e with w = 2 t.

    w is 2 t for every path: the paper prints w = sigma, which its authors call a typo (REPA, issue 52). draw: standard
    normal e of the shape of x; None: a step without noise.
    """
    diffusion = 2 * now
    x_next = x + (after - now) * (velocity - 0.5 * diffusion * score(x, velocity, now, interpolant))
    return x_next if draw is None else x_next + math.sqrt(diffusion) * math.sqrt(now - after) * draw.to(x)


def score(x: Tensor, velocity: Tensor, t: float, interpolant: Interpolant) -> Tensor:
    """Return the score (B, C, H, W) that a velocity implies at x and t (SiT, equation 9, in this convention)."""
    alpha, sigma, d_alpha, d_sigma = interpolant.coefficients(torch.tensor(t, dtype=torch.float64, device=x.device))
    ratio = alpha / d_alpha
    return (ratio * velocity - x) / (sigma**2 - ratio * d_sigma * sigma)


def check_steps(mode: str, *, heun: bool) -> None:
    """UserError unless there is such a mode, and Heun's steps are asked for in the ODE only."""
    if mode not in MODES:
        raise UserError(f"mode {mode!r}: choose ode or sde")
    if heun and mode != "ode":
        raise UserError("Heun steps belong to the ODE; with mode sde leave them out")


def solver_name(mode: str, *, heun: bool) -> str:
    """Return how steps are made, as a protocol entry."""
    return "heun" if heun else "euler" if mode == "ode" else "euler-maruyama, w=2t, last step 0.04"
