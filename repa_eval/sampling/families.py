"""From settings to a sampler: one integrating function a family, all randomness per sample index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from repa_eval.diffusion.conventions import REVERSED, ReversedTime, unwrap
from repa_eval.runtime.seeding import generators, normal
from repa_eval.sampling.samplers.ddpm import sample_ddpm
from repa_eval.sampling.samplers.joint import sample_joint_ode, sample_joint_sde
from repa_eval.sampling.samplers.repa import sample_ode
from repa_eval.sampling.samplers.sde import sample_sde
from repa_eval.sampling.samplers.transport import sample_transport_ode, sample_transport_sde
from repa_eval.sampling.settings import SamplerSettings

# (model, noise (B, C, H, W), labels (B,) or snippets (B, D), sample indices, settings) -> latents (B, C, H, W)
Integrate = Callable[[Any, Tensor, Tensor, Sequence[int], SamplerSettings], Tensor]


def integrate(model: Any, noise: Tensor, y: Tensor, indices: Sequence[int], settings: SamplerSettings) -> Tensor:
    """Return latents (B, C, H, W), float64; settings must have been made `for_model`."""
    return _FAMILIES[settings.family](model, noise, y, indices, settings)


def _repa(model: Any, noise: Tensor, y: Tensor, indices: Sequence[int], settings: SamplerSettings) -> Tensor:
    if settings.mode == "ode":
        return sample_ode(model, noise, y, num_steps=settings.num_steps, heun=settings.heun, guidance=settings.guidance)
    return sample_sde(
        model,
        noise,
        y,
        num_steps=settings.num_steps,
        step_noise=_draws(settings.seed, "step noise", indices, noise.shape[1:]),
        interpolant=settings.interpolant,
        guidance=settings.guidance,
    )


def _joint(model: Any, noise: Tensor, y: Tensor, indices: Sequence[int], settings: SamplerSettings) -> Tensor:
    width = (model.class_token_width,)
    token = normal(generators(settings.seed, "class noise", indices), width).to(noise)
    common: dict[str, Any] = {
        "num_steps": settings.num_steps, "guidance": settings.guidance, "cls_cfg_scale": settings.cls_cfg_scale,
    }  # fmt: skip
    if settings.mode == "ode":
        return sample_joint_ode(model, (noise, token), y, heun=settings.heun, **common)
    of_latent = _draws(settings.seed, "step noise", indices, noise.shape[1:])
    of_token = _draws(settings.seed, "class step noise", indices, width)
    return sample_joint_sde(
        model,
        (noise, token),
        y,
        step_noise=lambda: (of_latent(), of_token()),
        interpolant=settings.interpolant,
        **common,
    )


def _transport(model: Any, noise: Tensor, y: Tensor, indices: Sequence[int], settings: SamplerSettings) -> Tensor:
    # turning the time of a model of ours gives one in transport's time
    network = unwrap(model) if model.native == REVERSED else ReversedTime(model)
    common: dict[str, Any] = {
        "num_steps": settings.num_steps, "transport": settings.transport, "guidance": settings.guidance,
    }  # fmt: skip
    if settings.mode == "ode":
        return sample_transport_ode(network, noise, y, **common)
    draws = _draws(settings.seed, "step noise", indices, noise.shape[1:])
    return sample_transport_sde(network, noise, y, step_noise=draws, interpolant=settings.interpolant, **common)


def _ddpm(model: Any, noise: Tensor, y: Tensor, indices: Sequence[int], settings: SamplerSettings) -> Tensor:
    return sample_ddpm(
        unwrap(model),
        noise,
        y,
        num_steps=settings.num_steps,
        step_noise=_draws(settings.seed, "step noise", indices, noise.shape[1:]),
        guidance=settings.guidance,
    )


def _draws(seed: int, stream: str, indices: Sequence[int], shape: Sequence[int]) -> Callable[[], Tensor]:
    """Return a function that gives the next standard normal draws (B, *shape), float32 on the CPU."""
    gens = generators(seed, stream, indices)
    return lambda: normal(gens, shape)


_FAMILIES: dict[str, Integrate] = {"repa": _repa, "joint": _joint, "transport": _transport, "ddpm": _ddpm}
