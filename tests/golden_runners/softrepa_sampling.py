"""SoftREPA's sampler and FlowEdit, with the soft tokens in every branch."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from golden_runners import Arrays, Case, runner
from golden_runners.fill import fill
from golden_runners.sit_models import inputs
from golden_runners.softrepa import KEPT, wrapped
from repa_eval.models.shared.soft_tokens import SoftTokens
from repa_eval.sampling.samplers.flow import Velocity, edit_flow, flow_timesteps, guided, sample_flow


def model_of(config: dict[str, Any]) -> SoftTokens:
    model = wrapped(config)
    fill(model, keep=(KEPT,))
    return model


def timesteps_of(config: dict[str, Any]) -> list[float]:
    shift = re.search(r"shift=([\d.]+)", config["scheduler"])
    return flow_timesteps(config["NFE"], shift=float(shift[1]))


def branch(model: SoftTokens, text: Tensor, pooled: Tensor, *, tokens: bool = True) -> Velocity:
    def velocity(x: Tensor, timestep: float) -> Tensor:
        return model(x, torch.full((len(x),), timestep), text, pooled, tokens=tokens)[0]

    return velocity


@runner("softrepa", "sd3_sample")
def sd3_sample(case: Case, arrays: Arrays) -> Arrays:
    config = case["config"]
    model, timesteps, scale = model_of(config), timesteps_of(config), config["cfg_scale"]
    noise, *texts = inputs(arrays, "latents_T", "prompt_embs", "pooled_embs", "null_embs", "null_pooled")

    def sample(scale: float, *, tokens: bool = True) -> np.ndarray:
        own, null = (branch(model, *pair, tokens=tokens) for pair in (texts[:2], texts[2:]))
        return sample_flow(guided(own, null, scale), noise, timesteps).numpy()

    return {
        "timesteps": np.array(timesteps, dtype=np.float32),
        "z0": sample(scale),
        "z0_no_tokens": sample(scale, tokens=False),
        "z0_cfg1": sample(1.0),
    }


@runner("softrepa", "sd3_flowedit")
def sd3_flowedit(case: Case, arrays: Arrays) -> Arrays:
    config = case["config"]
    model, timesteps = model_of(config), timesteps_of(config)
    latents, noises = inputs(arrays, "src_latent", "noises")
    source, target, null = (
        branch(model, *inputs(arrays, f"{name}_embs", f"{name}_pooled")) for name in ("src", "tgt", "null")
    )

    def edit(*, official: bool) -> np.ndarray:
        draws = iter(noises if noises.ndim > latents.ndim else noises.split(len(latents)))
        edited = edit_flow(
            guided(source, null, config["src_cfg_scale"]),
            guided(target, null, config["tar_cfg_scale"], flow_edit_target=official),
            latents,
            timesteps,
            num_edited=config["n_start"],
            step_noise=lambda: next(draws),
        )
        return edited.numpy()

    return {"z_edit": edit(official=True), "z_edit_usual_cfg": edit(official=False)}
