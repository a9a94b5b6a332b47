"""The transport samplers of SiT (arXiv 2401.08740) and GMem (arXiv 2412.08781), in their own time.

Here t = 0 is noise, t = 1 data, and the velocity is data - noise: the reverse of the rest of the project. The path is
still an `Interpolant`, asked at 1 - t: linear is SiT's Linear, cosine its GVP.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from repa_eval.config import option
from repa_eval.diffusion.conventions import REVERSED, ReversedTime, unwrap
from repa_eval.diffusion.guidance import Guidance, guided_velocity
from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.diffusion.model import DiffusionModel
from repa_eval.errors import UserError
from repa_eval.interfaces.sampler import SamplerSettings, named, sampler
from repa_eval.sampling.samplers.shared.sde import MODES, score

SOLVERS = {"ode": ("dopri5", "euler", "midpoint", "heun2"), "sde": ("euler", "heun")}  # the first is SiT's default
FORMS = ("sigma", "linear", "decreasing", "increasing-decreasing", "constant")
LAST_STEPS = ("Mean", "Euler", "Tweedie")
ODE_ONLY = ("timestep_shift", "atol", "rtol")
SDE_ONLY = ("diffusion_form", "diffusion_norm", "last_step", "last_step_size")
Field = Callable[[Tensor, float], Tensor]  # state (B, C, H, W) float64 and t -> velocity data - noise


@dataclass(frozen=True, kw_only=True)
class TransportOptions:
    """Options of the transport samplers, spelled as the published ones; the defaults are SiT's."""

    mode: str = option("ode", help="ODE or SDE", choices=MODES)
    sampling_method: str = option("", help="ode: dopri5 (default), euler, midpoint, heun2; sde: euler (default), heun")
    timestep_shift: float = option(1.0, help="ode: t' = s t / (1 + (s - 1) t); GMem 0.3; 1 = none")
    atol: float = option(1e-6, help="absolute tolerance of dopri5")
    rtol: float = option(1e-3, help="relative tolerance of dopri5")
    diffusion_form: str = option("sigma", help="sde: how much noise is added along t; GMem linear", choices=FORMS)
    diffusion_norm: float = option(1.0, help="sde: factor of the diffusion form")
    last_step: str = option("Mean", help="sde: the last step, without noise", choices=LAST_STEPS)
    last_step_size: float = option(0.04, help="sde: size of the last step; GMem 0.004")

    def __post_init__(self) -> None:
        checks = {"timestep_shift": self.timestep_shift > 0, "last_step_size": 0 < self.last_step_size < 1}
        checks |= {"atol": self.atol > 0, "rtol": self.rtol > 0, "diffusion_norm": self.diffusion_norm >= 0}
        for name, fine in checks.items():
            if not fine:
                raise UserError(f"{name} {getattr(self, name)}: out of range")
        for name, allowed in (("mode", MODES), ("diffusion_form", FORMS), ("last_step", LAST_STEPS)):
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} {getattr(self, name)!r}: choose {', '.join(allowed)}")
        if self.solver not in SOLVERS[self.mode]:
            solvers = ", ".join(SOLVERS[self.mode])
            raise UserError(f"sampling_method {self.sampling_method!r}: with {self.mode} choose {solvers}")

    @property
    def solver(self) -> str:
        """The solver, in lower case: the mode's first one where none is named."""
        return self.sampling_method.lower() or SOLVERS[self.mode][0]


def record(settings: SamplerSettings) -> dict[str, object]:
    """Return the solver, its network calls, and the options that matter in its mode."""
    options: TransportOptions = settings.options
    num_steps, solver = settings.num_steps, options.solver
    if options.mode == "sde":
        nfe = num_steps if solver == "euler" else 2 * num_steps - 1
        names: tuple[str, ...] = SDE_ONLY
        entries: dict[str, object] = {"solver": f"{solver}-maruyama" if solver == "euler" else solver, "nfe": nfe}
    else:
        nfe = (num_steps - 1) * (1 if solver == "euler" else 2)
        names = ODE_ONLY if solver == "dopri5" else ("timestep_shift",)
        entries = {"solver": solver, "nfe": "adaptive" if solver == "dopri5" else nfe}
    return {**named(settings), **entries, **{name: getattr(options, name) for name in names}}


@sampler(
    "transport",
    default_for=lambda model: model.native == REVERSED,
    options=TransportOptions,
    only_in={**dict.fromkeys(ODE_ONLY, "ode"), **dict.fromkeys(SDE_ONLY, "sde")},
    uint8="round",
    guided_channels=3,  # of a latent's four
    least_steps=2,
    record=record,
)
def integrate(
    model: DiffusionModel, noise: Tensor, y: Tensor, indices: Sequence[int], settings: SamplerSettings
) -> Tensor:
    """SiT's and GMem's, in their own time."""
    # ReversedTime is its own inverse: it turns a model of ours into one in transport's time
    network = unwrap(model) if model.native == REVERSED else ReversedTime(model)
    options: TransportOptions = settings.options
    common: dict[str, Any] = {"num_steps": settings.num_steps, "options": options, "guidance": settings.guidance}
    if options.mode == "ode":
        return sample_transport_ode(network, noise, y, **common)
    draw = settings.draws("step noise", indices, noise.shape[1:])
    return sample_transport_sde(network, noise, y, step_noise=draw, interpolant=settings.interpolant, **common)


def velocity_field(network: Any, y: Tensor, guidance: Guidance, dtype: torch.dtype) -> Field:
    """Return the (guided) velocity of a network in transport time; guidance keeps its own clock, 1 = noise.

    y: labels (B,) or snippets (B, D). Each call decides by its own t, as GMem does.
    """

    def field(x: Tensor, t: float) -> Tensor:
        own = min(max(1 - t, 0.0), 1.0)  # dopri5 looks beyond t = 1, and is guided there as at 1
        return guided_velocity(network, x, t, y, guidance, guided=guidance.applies(own), dtype=dtype)

    return field


@torch.no_grad()
def sample_transport_ode(
    network: Any, noise: Tensor, y: Tensor, *, num_steps: int, options: TransportOptions, guidance: Guidance
) -> Tensor:
    """Return latents (B, C, H, W), float64. num_steps counts the points of the grid from 0 to 1, as published."""
    assert options.mode == "ode"
    grid = torch.linspace(0, 1, num_steps, dtype=torch.float64)
    grid = options.timestep_shift * grid / (1 + (options.timestep_shift - 1) * grid)
    field = velocity_field(network, y, guidance, noise.dtype)
    solver = options.solver
    if solver == "dopri5":
        return _dopri5(field, noise.double(), grid, options)
    x = noise.double()
    for now, after in pairwise(grid.tolist()):
        x = x + (after - now) * _slope(field, x, now, after - now, solver)
    return x


def _slope(field: Field, x: Tensor, t: float, step: float, solver: str) -> Tensor:
    first = field(x, t)
    if solver == "euler":
        return first
    if solver == "midpoint":
        return field(x + 0.5 * step * first, t + 0.5 * step)
    return 0.5 * (first + field(x + step * first, t + step))


def _dopri5(field: Field, x: Tensor, grid: Tensor, options: TransportOptions) -> Tensor:
    try:
        from torchdiffeq import odeint
    except ImportError as error:
        raise UserError(
            "the solver dopri5 needs torchdiffeq: pip install 'repa-eval[ode]', or choose --sampling-method heun2"
        ) from error
    # the step size follows the error of the whole batch: an image depends a little on its neighbours
    states: Tensor = odeint(
        lambda t, state: field(state, float(t)), x, grid.to(x.device), method="dopri5",
        atol=options.atol, rtol=options.rtol,
    )  # fmt: skip
    return states[-1]


@torch.no_grad()
def sample_transport_sde(
    network: Any,
    noise: Tensor,
    y: Tensor,
    *,
    num_steps: int,
    step_noise: Callable[[], Tensor],
    options: TransportOptions,
    interpolant: Interpolant,
    guidance: Guidance,
) -> Tensor:
    """Return latents (B, C, H, W), float64: dx = (v + D score) dt + sqrt(2 D dt) e, and a last step without noise.

    Times are linspace(0, 1 - last_step_size, num_steps). Heun adds the noise first and then averages two drifts.
    The published code asks the network for velocity and score apart, at the same input; here one call serves both.
    """
    assert options.mode == "sde"
    grid = torch.linspace(0, 1 - options.last_step_size, num_steps, dtype=torch.float64).tolist()
    solver, field = options.solver, velocity_field(network, y, guidance, noise.dtype)

    def drift(x: Tensor, t: float) -> Tensor:
        velocity = field(x, t)
        return velocity + diffusion(t, options, interpolant) * _score(x, velocity, t, interpolant)

    x = noise.double()
    for now, after in pairwise(grid):
        step = after - now
        kick = math.sqrt(2 * diffusion(now, options, interpolant)) * math.sqrt(step) * step_noise().to(x)
        if solver == "euler":
            x = x + step * drift(x, now) + kick
        else:
            x = x + kick
            first = drift(x, now)
            x = x + 0.5 * step * (first + drift(x + step * first, after))
    return _last_step(field, x, grid[-1], options, interpolant)


def diffusion(t: float, options: TransportOptions, interpolant: Interpolant) -> float:
    """Return D(t) of a diffusion form, t = 1 being data (SiT's transport/path.py; its SBDM has no value at t = 0)."""
    norm = options.diffusion_norm
    if options.diffusion_form == "sigma":
        return norm * float(interpolant.coefficients(torch.tensor(1 - t, dtype=torch.float64))[1])
    if options.diffusion_form == "linear":
        return norm * (1 - t)
    if options.diffusion_form == "decreasing":
        return 0.25 * (norm * math.cos(math.pi * t) + 1) ** 2
    return norm * math.sin(math.pi * t) ** 2 if options.diffusion_form == "increasing-decreasing" else norm


def _last_step(field: Field, x: Tensor, t: float, options: TransportOptions, interpolant: Interpolant) -> Tensor:
    velocity = field(x, t)
    if options.last_step == "Euler":
        return x + options.last_step_size * velocity
    gradient = _score(x, velocity, t, interpolant)
    if options.last_step == "Mean":
        return x + options.last_step_size * (velocity + diffusion(t, options, interpolant) * gradient)
    alpha, sigma, _, _ = interpolant.coefficients(torch.tensor(1 - t, dtype=torch.float64))
    return x / float(alpha) + float(sigma**2 / alpha) * gradient


def _score(x: Tensor, velocity: Tensor, t: float, interpolant: Interpolant) -> Tensor:
    return score(x, -velocity, 1 - t, interpolant)
