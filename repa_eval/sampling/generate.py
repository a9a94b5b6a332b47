"""Images from a model, one by one a function of (seed, index): the same for any batch, process count or restart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from repa_eval.config import option
from repa_eval.data._registry import to_uint8
from repa_eval.errors import UserError
from repa_eval.interpolant import Interpolant
from repa_eval.models.layers import DiffusionModel
from repa_eval.sampling.guidance import Guidance
from repa_eval.sampling.ode import sample_ode
from repa_eval.sampling.sde import sample_sde
from repa_eval.seeding import generators, integers, normal


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """How images are made; all of it goes into the protocol record."""

    mode: str = option("ode", help="sampler", choices=("ode", "sde"))
    num_steps: int = 50
    heun: bool = False
    interpolant: Interpolant = field(default_factory=Interpolant)
    guidance: Guidance = field(default_factory=Guidance)
    balanced: bool = False
    uint8: str = option("floor", help="float to uint8", choices=("floor", "round"))
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise UserError(f"num_steps {self.num_steps}: at least 1 step is needed")
        if self.mode not in ("ode", "sde"):
            raise UserError(f"mode {self.mode!r}: choose ode or sde")
        if self.heun and self.mode != "ode":
            raise UserError("Heun steps belong to the ODE; with mode sde leave them out")

    def record(self) -> dict[str, object]:
        """Return the settings as protocol entries."""
        solver = "heun" if self.heun else "euler" if self.mode == "ode" else "euler-maruyama, w=2t, last step 0.04"
        return {
            "sampler_mode": self.mode,
            "solver": solver,
            "num_steps": self.num_steps,
            "path_type": self.interpolant.path_type,
            "cfg_scale": self.guidance.cfg_scale,
            "guidance_interval": [self.guidance.low, self.guidance.high],
            "labels": "balanced" if self.balanced else "random",
            "uint8": self.uint8,
            "sampler_seed": self.seed,
        }


def labels_of(indices: Iterable[int], num_classes: int, settings: SamplerSettings) -> Tensor:
    """Return the class labels of sample indices, int64: index modulo classes, or uniform draws."""
    if settings.balanced:
        return torch.tensor([index % num_classes for index in indices])
    return integers(generators(settings.seed, "label", indices), num_classes)


def generate(
    model: DiffusionModel, indices: Iterable[int], settings: SamplerSettings, *, batch_size: int = 256
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Yield (indices, images uint8 (B, C, H, W) on the CPU, labels (B,)) batch by batch.

    The last batch is padded to batch_size, because a matrix product may round differently for another batch size.
    """
    wanted = list(indices)
    config, like = model.config, next(model.parameters())
    shape = (config.in_channels, config.input_size, config.input_size)
    for first in range(0, len(wanted), batch_size):
        batch = wanted[first : first + batch_size]
        padded = batch + [batch[-1]] * (batch_size - len(batch))
        noise = normal(generators(settings.seed, "noise", padded), shape).to(like)
        labels = labels_of(padded, config.num_classes, settings).to(like.device)
        latents = _integrate(model, noise, labels, padded, settings)
        images = to_uint8(latents, settings.uint8).cpu()
        yield batch, images[: len(batch)], labels[: len(batch)].cpu()


def _integrate(
    model: DiffusionModel, noise: Tensor, labels: Tensor, indices: Sequence[int], settings: SamplerSettings
) -> Tensor:
    if settings.mode == "ode":
        return sample_ode(
            model, noise, labels, num_steps=settings.num_steps, heun=settings.heun, guidance=settings.guidance
        )
    gens = generators(settings.seed, "step noise", indices)
    return sample_sde(
        model,
        noise,
        labels,
        num_steps=settings.num_steps,
        step_noise=lambda: normal(gens, noise.shape[1:]),
        interpolant=settings.interpolant,
        guidance=settings.guidance,
    )
