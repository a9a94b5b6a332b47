"""DDPM's discrete diffusion as DiT uses it (arXiv 2006.11239, 2102.09672, 2212.09748): schedule, q_sample, losses.

Steps count up with the noise: 0 is almost clean, 999 is noise. All coefficients are float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from repa_eval.errors import UserError

TRAIN_STEPS = 1000
# from x_t and steps (B,) to noise and variance logits (B, 2C, H, W)
Predict = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Schedule:
    """betas: (T,) float64. timestep_map: (T,) int64, the step that the network is told at each of them."""

    betas: Tensor
    timestep_map: Tensor

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """Share of the data in the variance of x_t (T,)."""
        return (1 - self.betas).cumprod(0)

    @cached_property
    def posterior(self) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients of x_0 and x_t in the mean of q(x_t-1 | x_t, x_0), and its log variance, each (T,)."""
        after = self.alphas_cumprod
        before = torch.cat([torch.ones(1, dtype=torch.float64), after[:-1]])
        variance = self.betas * (1 - before) / (1 - after)
        clipped = torch.cat([variance[1:2], variance[1:]])  # at step 0 the variance is 0: take that of step 1
        of_data = self.betas * before.sqrt() / (1 - after)
        of_state = (1 - before) * (1 - self.betas).sqrt() / (1 - after)
        return of_data, of_state, clipped.log()

    def respaced(self, num_steps: int) -> Schedule:
        """Return the schedule of `num_steps` steps spread evenly from the first to the last, with the same noise."""
        total = len(self.betas)
        if not 2 <= num_steps <= total:
            raise UserError(f"num_steps {num_steps}: this diffusion has {total} steps; choose 2 to {total}")
        stride, place, kept = (total - 1) / (num_steps - 1), 0.0, []
        for _ in range(num_steps):  # summed up as published: another rounding may pick another step
            kept.append(round(place))
            place += stride
        steps = torch.tensor(kept)
        after = self.alphas_cumprod[steps]
        before = torch.cat([torch.ones(1, dtype=torch.float64), after[:-1]])
        return Schedule(1 - after / before, self.timestep_map[steps])


def linear_schedule(num_steps: int = TRAIN_STEPS) -> Schedule:
    """Return DDPM's linear betas: 1e-4 to 0.02 in 1000 steps."""
    scale = TRAIN_STEPS / num_steps
    betas = torch.linspace(scale * 1e-4, scale * 0.02, num_steps, dtype=torch.float64)
    return Schedule(betas, torch.arange(num_steps))


def q_sample(schedule: Schedule, data: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
    """Return x_t (B, C, H, W) of clean data, noise (B, C, H, W) and steps (B,)."""
    cumulative = schedule.alphas_cumprod
    return at(cumulative.sqrt(), steps, data) * data + at((1 - cumulative).sqrt(), steps, data) * noise


def losses(predict: Predict, schedule: Schedule, data: Tensor, noise: Tensor, steps: Tensor) -> dict[str, Tensor]:
    """Return mse of the noise, vb (the variational bound's term, bits) and their sum, each (B,), as DiT trains.

    vb teaches the variance alone: the predicted noise is detached in it.
    """
    x = q_sample(schedule, data, noise, steps)
    out = predict(x, steps)
    predicted, logits = out.chunk(2, dim=1)
    mse = (noise - predicted).square().flatten(1).mean(1)
    mean, log_variance = reverse(schedule, x, steps, predicted.detach(), logits)
    of_data, of_state, true_log_variance = schedule.posterior
    true_mean = at(of_data, steps, x) * data + at(of_state, steps, x) * x
    gap = _gaussian_kl(true_mean, at(true_log_variance, steps, x), mean, log_variance)
    likelihood = _discretised_log_likelihood(data, mean, 0.5 * log_variance)
    vb = torch.where(steps == 0, -likelihood.flatten(1).mean(1), gap.flatten(1).mean(1)) / math.log(2)
    return {"loss": mse + vb, "mse": mse, "vb": vb}


def reverse(schedule: Schedule, x: Tensor, steps: Tensor, noise: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and log variance (B, C, H, W) of p(x_t-1 | x_t) for predicted noise and variance logits.

    The learned variance lies between the posterior's and beta, in the log; x_0 is not clipped.
    """
    of_data, of_state, lowest = schedule.posterior
    cumulative = schedule.alphas_cumprod
    data = at((1 / cumulative).sqrt(), steps, x) * x - at((1 / cumulative - 1).sqrt(), steps, x) * noise
    mean = at(of_data, steps, x) * data + at(of_state, steps, x) * x
    share = (logits + 1) / 2
    return mean, share * at(schedule.betas.log(), steps, x) + (1 - share) * at(lowest, steps, x)


def steps_of_equal_noise(alphas_cumprod: Tensor, t: Tensor) -> Tensor:
    """Return the steps (B,), int64, whose noise-to-signal ratio is nearest (in log) to the linear path's, t/(1-t).

    alphas_cumprod: (T,) float64, falling. t: (B,) in [0, 1].
    """
    ratios = 0.5 * ((1 - alphas_cumprod) / alphas_cumprod).log()  # rises with the step
    wanted = torch.logit(t.double().cpu(), eps=1e-12)
    return (ratios[None] - wanted[:, None]).abs().argmin(1).to(t.device)


def at(values: Tensor, steps: Tensor, like: Tensor) -> Tensor:
    """Return the values (T,) at steps (B,) as (B, 1, 1, 1) of the dtype and device of `like`."""
    return values[steps.cpu()].to(like).reshape(-1, *[1] * (like.ndim - 1))


def _gaussian_kl(mean_1: Tensor, log_1: Tensor, mean_2: Tensor, log_2: Tensor) -> Tensor:
    distance = (mean_1 - mean_2).square() * torch.exp(-log_2)
    return 0.5 * (log_2 - log_1 - 1 + torch.exp(log_1 - log_2) + distance)


def _discretised_log_likelihood(data: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Return log p of data in [-1, 1] in bins of +-1/255 under a Gaussian; the outermost bins are open."""
    centred, inverse = data - mean, torch.exp(-log_scale)
    upper, lower = _cdf(inverse * (centred + 1 / 255)), _cdf(inverse * (centred - 1 / 255))
    inside = (upper - lower).clamp(min=1e-12).log()
    left, right = upper.clamp(min=1e-12).log(), (1 - lower).clamp(min=1e-12).log()
    return torch.where(data < -0.999, left, torch.where(data > 0.999, right, inside))


def _cdf(x: Tensor) -> Tensor:
    """Return the tanh approximation of the normal distribution function, as published."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
