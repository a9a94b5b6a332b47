"""GMem's transport samplers, by our LightningDiT."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from golden_runners import Arrays, Case, runner
from golden_runners.gmem import PATHS, lightning_dit
from repa_eval.diffusion.guidance import Guidance
from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.models.lightning_dit import LightningDiT, LightningDiTConfig
from repa_eval.sampling.samplers.transport import TransportOptions, sample_transport_ode, sample_transport_sde

OPTIONS = {field.name for field in dataclasses.fields(TransportOptions)}


@runner("gmem", "sampler")
def sampler(case: Case, arrays: Arrays) -> Arrays:
    config, model = case["config"], _network(case["config"], arrays["c"].shape[-1])
    sde = config["mode"] == "SDE"
    given = {key: config[key] for key in OPTIONS if config.get(key) is not None}
    given["mode"] = config["mode"].lower()
    if sde:  # the json says in words that the shift is not used there
        given.pop("timestep_shift", None)
    times: list[float] = []
    model.register_forward_pre_hook(lambda _model, inputs: times.append(float(inputs[1][0])))
    z, snippets = torch.from_numpy(arrays["z"]), F.normalize(torch.from_numpy(arrays["c"]), dim=1)
    common: dict[str, Any] = {
        "num_steps": config["num_steps"], "options": TransportOptions(**given), "guidance": Guidance(),
    }  # fmt: skip
    path = Interpolant(path_type=PATHS[config.get("path_type", "Linear")])
    if sde:
        draws = iter(torch.from_numpy(arrays["draw_noise"]))
        samples = sample_transport_sde(model, z, snippets, step_noise=draws.__next__, interpolant=path, **common)
    else:
        samples = sample_transport_ode(model, z, snippets, **common)
    calls = np.repeat(times, published_calls(len(times), str(config["last_step"])) if sde else 1)
    return {"samples": samples.numpy(), "t_grid_calls": calls}


def published_calls(count: int, last_step: str) -> list[int]:
    """Return how often the published SDE calls the network where ours does once, for each of `count` calls of ours.

    Its drift asks for velocity and score by a call each, at the same input. The last step takes the drift where it is a
    "Mean", the velocity alone where it is "Euler" and the score alone where it is "Tweedie".
    """
    return [2] * (count - 1) + [2 if last_step == "Mean" else 1]


def _network(config: dict[str, Any], width: int) -> LightningDiT:
    fields = {field.name for field in dataclasses.fields(LightningDiTConfig)}
    return lightning_dit({key: value for key, value in config.items() if key in fields}, condition_size=width)
