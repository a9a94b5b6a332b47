"""Images between two snippets of a memory bank: the snippet changes, the noise does not (GMem's section 4.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from repa_eval.diffusion.model import DiffusionModel
from repa_eval.interfaces.images import to_uint8
from repa_eval.interfaces.sampler import SamplerSettings
from repa_eval.memory_bank.bank import Bank
from repa_eval.memory_bank.interpolation import interpolate
from repa_eval.runtime.seeding import generators, integers, normal, uniform
from repa_eval.sampling.generate import integrate

STEPS = 6  # images from one snippet to the other, both ends among them, as published


def pairs_of(count: int, size: int, seed: int) -> list[tuple[int, int]]:
    """Return `count` pairs of different rows of a bank of `size` snippets, by (seed, number of the pair)."""
    gens = generators(seed, "pair", range(count))
    first, steps = integers(gens, size).tolist(), integers(gens, max(1, size - 1)).tolist()
    return [(a, (a + 1 + step) % size) for a, step in zip(first, steps, strict=True)]


def images_between(
    model: DiffusionModel,
    bank: Bank,
    pairs: Sequence[tuple[int, int]],
    settings: SamplerSettings,
    *,
    steps: int = STEPS,
    method: str = "linear",
    decode: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return images uint8 (P, steps, C, H, W): from row a to row b of the bank for every pair (a, b).

    The noise of pair p, also that of an SDE's steps, and the masks are functions of (seed, p).
    """
    settings = settings.for_model(model)
    like, shape = next(model.parameters()), model.image_shape
    alphas = torch.linspace(0, 1, steps).tolist()
    images = []
    for number, (a, b) in enumerate(pairs):
        [masks] = uniform(generators(settings.seed, "mask", [number]), (steps, bank.width))
        snippets = interpolate(bank.row(a).cpu(), bank.row(b).cpu(), alphas, method, draws=masks).to(like)
        noise = normal(generators(settings.seed, "noise", [number]), shape).to(like).expand(steps, *shape)
        latents = integrate(model, noise, snippets, [number] * steps, settings)
        images.append(to_uint8(model.decode(latents) if decode is None else decode(latents), settings.rule).cpu())
    return torch.stack(images)
