"""SiT's own samplers and loss, in its own time (0 = noise)."""

from __future__ import annotations

from typing import Any

import torch

from golden_runners import Arrays, Case, runner
from golden_runners.repa import network
from repa_eval.diffusion.guidance import Guidance
from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.sampling.samplers.transport import Transport, sample_transport_ode, sample_transport_sde, transport_loss

PATHS = {"Linear": "linear", "GVP": "cosine"}


@runner("sit", "transport")
def transport(case: Case, arrays: Arrays) -> Arrays:
    model, num_steps = network(case["config"]["model"], case).eval(), case["config"]["num_steps"]
    z, y, x1, x0, t = (torch.from_numpy(arrays[name]) for name in ("z", "y", "x1", "x0", "t"))
    outputs: dict[str, Any] = {}
    for name, path_type in PATHS.items():
        path = Interpolant(path_type=path_type)
        for method in ("euler", "heun2"):
            options = Transport(sampling_method=method)
            outputs[f"ode_{method}_{name}"] = sample_transport_ode(
                model, z, y, num_steps=num_steps, transport=options, guidance=Guidance()
            )
        for form in ("sigma", "decreasing"):
            draws = iter(torch.from_numpy(arrays["step_noise"]))
            outputs[f"sde_{form}_{name}"] = sample_transport_sde(
                model,
                z,
                y,
                num_steps=num_steps,
                step_noise=draws.__next__,
                transport=Transport(diffusion_form=form),
                interpolant=path,
                guidance=Guidance(),
            )
        outputs[f"loss_{name}"] = transport_loss(model, x1, x0, t, y, path).detach()
    return {name: value.numpy() for name, value in outputs.items()}
