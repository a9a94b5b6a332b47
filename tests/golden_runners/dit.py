"""DiT's diffusion: schedule, losses and ancestral sampling."""

from __future__ import annotations

import numpy as np
import torch

from golden_runners import Arrays, Case, runner
from golden_runners.sit_models import network, numbers_in
from repa_eval.diffusion.ddpm_schedule import linear_schedule, losses, q_sample
from repa_eval.diffusion.guidance import Guidance
from repa_eval.sampling.samplers.ddpm import sample_ddpm


@runner("dit", "diffusion")
def diffusion(case: Case, arrays: Arrays) -> Arrays:
    config = case["config"]
    assert config["noise_schedule"] == "linear"
    model = network("DiT", config["model"], keep=case["fill"]["kept_as_initialised"])
    steps = [int(number) for number in numbers_in(case["outputs"]["alphas_cumprod"]["meaning"].split("(")[0])]
    z, y, draws, x0, noise, t = (torch.from_numpy(arrays[n]) for n in ("z", "y", "step_noise", "x0", "noise", "t"))
    num_steps, schedule = int(config["timestep_respacing"]), linear_schedule()
    sample = sample_ddpm(model, z, y, num_steps=num_steps, step_noise=iter(draws).__next__, guidance=Guidance())
    terms = losses(lambda x, steps: model(x, steps, y)[0], schedule, x0, noise, t)
    return {
        "sample": sample.numpy(),
        "timestep_map": schedule.respaced(num_steps).timestep_map.numpy(),
        "x_t": q_sample(schedule, x0, noise, t).numpy(),
        "alphas_cumprod": schedule.alphas_cumprod[np.array(steps)].numpy(),
        **{name: value.detach().numpy() for name, value in terms.items()},
    }
