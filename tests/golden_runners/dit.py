"""DiT's diffusion: schedule, losses and ancestral sampling."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from golden_runners import Arrays, Case, runner
from golden_runners.fill import fill
from repa_eval.config import from_dict
from repa_eval.diffusion.ddpm_schedule import linear_schedule, losses, q_sample
from repa_eval.diffusion.guidance import Guidance
from repa_eval.models.dit import DiT, DiTConfig
from repa_eval.sampling.samplers.ddpm import sample_ddpm


@runner("dit", "diffusion")
def diffusion(case: Case, arrays: Arrays) -> Arrays:
    config = case["config"]
    known = {field.name for field in dataclasses.fields(DiTConfig)}
    model = DiT(from_dict(DiTConfig(), {key: value for key, value in config["model"].items() if key in known})).eval()
    fill(model, keep=case["fill"]["kept_as_initialised"])
    z, y, draws, x0, noise, t = (torch.from_numpy(arrays[n]) for n in ("z", "y", "step_noise", "x0", "noise", "t"))
    num_steps, schedule = int(config["timestep_respacing"]), linear_schedule()
    sample = sample_ddpm(model, z, y, num_steps=num_steps, step_noise=iter(draws).__next__, guidance=Guidance())
    terms = losses(lambda x, steps: model(x, steps, y)[0], schedule, x0, noise, t)
    return {
        "sample": sample.numpy(),
        "timestep_map": schedule.respaced(num_steps).timestep_map.numpy(),
        "x_t": q_sample(schedule, x0, noise, t).numpy(),
        "alphas_cumprod": schedule.alphas_cumprod[np.array([0, 37, 500, 999])].numpy(),
        **{name: value.detach().numpy() for name, value in terms.items()},
    }
