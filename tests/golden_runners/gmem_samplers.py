"""GMem's transport samplers, by our LightningDiT."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from golden_runners import Arrays, Case, runner
from golden_runners.fill import fill
from repa_eval.config import from_dict
from repa_eval.diffusion.guidance import Guidance
from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.models.lightning_dit import LightningDiT, LightningDiTConfig
from repa_eval.sampling.samplers.transport import Transport, sample_transport_ode, sample_transport_sde

OPTIONS = {field.name for field in dataclasses.fields(Transport)}


@runner("gmem", "sampler")
def sampler(case: Case, arrays: Arrays) -> Arrays:
    config, model = case["config"], _network(case["config"])
    sde = config["mode"] == "SDE"
    given = {key: config[key] for key in OPTIONS if config[key] is not None and not isinstance(config[key], dict)}
    if sde:  # the json says in words that the shift is not used there
        given.pop("timestep_shift")
    times: list[float] = []
    model.register_forward_pre_hook(lambda _model, inputs: times.append(float(inputs[1][0])))
    z, snippets = torch.from_numpy(arrays["z"]), F.normalize(torch.from_numpy(arrays["c"]), dim=1)
    common: dict[str, Any] = {
        "num_steps": config["num_steps"], "transport": Transport(**given), "guidance": Guidance(),
    }  # fmt: skip
    if sde:
        draws = iter(torch.from_numpy(arrays["draw_noise"]))
        samples = sample_transport_sde(
            model, z, snippets, step_noise=draws.__next__, interpolant=Interpolant(), **common
        )
    else:
        samples = sample_transport_ode(model, z, snippets, **common)
    # published: the SDE's drift asks for velocity and score by a call each, at the same input
    return {"samples": samples.numpy(), "t_grid_calls": np.repeat(times, 2 if sde else 1)}


def _network(config: dict[str, Any]) -> LightningDiT:
    known = {field.name for field in dataclasses.fields(LightningDiTConfig)}
    ours = {key: value for key, value in config.items() if key in known}
    model = LightningDiT(from_dict(LightningDiTConfig(z_dims=(768,)), ours)).eval()
    fill(model, keep=("pos_embed", "feat_rope.freqs_cos", "feat_rope.freqs_sin"))
    return model
