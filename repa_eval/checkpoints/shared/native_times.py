"""The time of a diffusers scheduler, and what its network predicts, as this project's t and velocity.

Two kinds: DDPM's steps, whose betas say how much noise each has, and flow matching, x_t = (1 - t) x + t e.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from repa_eval.diffusion.ddpm_schedule import at, steps_of_equal_noise
from repa_eval.errors import Failure, UserError, first_line
from repa_eval.runtime.files import read_object

PREDICTIONS = ("epsilon", "v_prediction", "sample")
CONFIG = "scheduler_config.json"


class NativeTime(Protocol):
    """How a network counts time. describe: for protocols; noising: how its x_t is made."""

    @property
    def describe(self) -> str:
        """The network's own time and target."""

    @property
    def noising(self) -> str:
        """How x_t is made."""

    def noised(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return x_t (B, C, H, W) of clean x, noise and t (B,), 1 = noise."""

    def told(self, t: Tensor) -> Tensor:
        """Return the times (B,) that the network is called with."""

    def velocity(self, x: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """Return noise - data (B, C, H, W) of a network's output (B, C, H, W) for x made by `noised` at t (B,)."""


@dataclass(frozen=True)
class FlowTime:
    """Flow matching: t is the share of the noise. steps: what the network is told at t = 1."""

    steps: int = 1000
    origin: str = ""
    noising: str = "x_t = (1 - t) x + t noise"

    @property
    def describe(self) -> str:
        """The network's own time and target."""
        return f"flow matching, timestep {self.steps} t, v = noise - data{self.origin}"

    def noised(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return (1 - t) x + t noise."""
        share = t.to(x).view(-1, 1, 1, 1)
        return (1 - share) * x + share * noise

    def told(self, t: Tensor) -> Tensor:
        """Return the times (B,) that the network is called with."""
        return t.float() * self.steps

    def velocity(self, x: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """Return the output: it is the velocity."""
        return output


@dataclass(frozen=True)
class StepTime:
    """DDPM's steps. alphas_cumprod: share of the data in the variance at each step (T,), float64.

    A time t of the linear path is matched to the step of the nearest noise-to-signal ratio, sigma/alpha = t/(1-t).
    """

    alphas_cumprod: Tensor = field(repr=False)
    prediction: str = "epsilon"
    origin: str = ""
    noising: str = "q_sample at the step of equal noise-to-signal ratio"

    @property
    def describe(self) -> str:
        """The network's own time and target."""
        last = len(self.alphas_cumprod) - 1
        return f"steps 0..{last}, {last} = noise, predicts {self.prediction}{self.origin}"

    def noised(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return sqrt(abar) x + sqrt(1 - abar) noise at the steps matched to t (B,)."""
        alpha, sigma = self._scales(x, t)
        return alpha * x + sigma * noise

    def told(self, t: Tensor) -> Tensor:
        """Return the steps (B,), int64."""
        return steps_of_equal_noise(self.alphas_cumprod, t)

    def velocity(self, x: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """Return noise - data from the predicted noise, the predicted v = alpha e - sigma x, or the predicted data."""
        alpha, sigma = self._scales(x, t)
        if self.prediction == "sample":
            return (x - alpha * output) / sigma - output
        if self.prediction == "v_prediction":
            return (sigma * x + alpha * output) - (alpha * x - sigma * output)
        return output - (x - sigma * output) / alpha

    def _scales(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        steps = self.told(t)
        return at(self.alphas_cumprod.sqrt(), steps, x), at((1 - self.alphas_cumprod).sqrt(), steps, x)


def native_time(folder: Path | None, assumed: Mapping[str, Any]) -> NativeTime:
    """Return the time of the scheduler in `folder`; without one that of `assumed`, a scheduler's config.

    UserError for a scheduler of another kind than DDPM's steps and flow matching.
    """
    file = None if folder is None else folder / CONFIG
    if file is None or not file.is_file():
        return _of_config(assumed, " (no scheduler lies in the folder: assumed)", "assumed scheduler")
    return _of_config(read_object(file), "", str(file))


def _of_config(config: Mapping[str, Any], origin: str, where: str) -> NativeTime:
    name = str(config.get("_class_name"))
    steps = config.get("num_train_timesteps", 1000)
    if isinstance(steps, bool) or not isinstance(steps, int) or not 2 <= steps <= 100_000:
        raise Failure(f"{where}: num_train_timesteps is {steps!r}, no number of steps")
    if "FlowMatch" in name:
        return FlowTime(steps, origin)
    prediction = config.get("prediction_type", "epsilon")
    if not {"beta_schedule", "trained_betas"} & set(config) or prediction not in PREDICTIONS:
        raise UserError(f"{where}: a {name} with prediction {prediction!r} is neither DDPM's steps nor flow matching")
    return StepTime(_alphas_cumprod(config, where), prediction, origin)


def _alphas_cumprod(config: Mapping[str, Any], where: str) -> Tensor:
    """Return the shares (T,), float64, as diffusers' DDPMScheduler makes them of a config."""
    from diffusers import DDPMScheduler

    known = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas",
             "rescale_betas_zero_snr")  # fmt: skip
    try:
        scheduler: Any = DDPMScheduler(**{name: config[name] for name in known if name in config})
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        raise Failure(f"{where} describes no schedule of DDPM: {first_line(error)}") from error
    cumulative: Tensor = scheduler.alphas_cumprod.double()
    if not bool(torch.isfinite(cumulative).all()):
        raise Failure(f"{where}: its betas are not finite")
    return cumulative
