"""SiT's own samplers and loss, in its own time (0 = noise)."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import torch
from torch import Tensor

from golden_runners import Arrays, Case, runner
from golden_runners.repa import network
from repa_eval.diffusion.conventions import ReversedTime
from repa_eval.diffusion.guidance import Guidance
from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.interfaces.method import Batch
from repa_eval.sampling.samplers.transport import TransportOptions, sample_transport_ode, sample_transport_sde
from repa_eval.train.losses import velocity_loss

PATHS = {"Linear": "linear", "GVP": "cosine"}


@runner("sit", "transport")
def transport(case: Case, arrays: Arrays) -> Arrays:
    model, num_steps = network(case["config"]["model"], case).eval(), case["config"]["num_steps"]
    z, y, x1, x0, t = (torch.from_numpy(arrays[name]) for name in ("z", "y", "x1", "x0", "t"))
    known = {field.name for field in dataclasses.fields(TransportOptions)} - {"mode"}
    given = {key: value for key, value in case["config"].items() if key in known and value is not None}
    outputs: dict[str, Any] = {}
    for name in case["outputs"]:  # ode_SOLVER_PATH, sde_FORM_PATH, loss_PATH
        kind, *middle, path_name = name.split("_")
        path = Interpolant(path_type=PATHS[path_name])
        if kind == "ode":
            options = TransportOptions(**{**given, "sampling_method": "_".join(middle)})
            outputs[name] = sample_transport_ode(model, z, y, num_steps=num_steps, options=options, guidance=Guidance())
        elif kind == "sde":
            draws = iter(torch.from_numpy(arrays["step_noise"]))
            chosen = {**given, "diffusion_form": "_".join(middle), **last_step(case, name)}
            options = TransportOptions(mode="sde", **chosen)
            outputs[name] = sample_transport_sde(
                model,
                z,
                y,
                num_steps=num_steps,
                step_noise=draws.__next__,
                options=options,
                interpolant=path,
                guidance=Guidance(),
            )
        else:
            outputs[name] = loss_of(model, x1, x0, t, y, path).detach()
    return {name: value.numpy() for name, value in outputs.items()}


def loss_of(network: Any, data: Tensor, noise: Tensor, t: Tensor, y: Tensor, path: Interpolant) -> Tensor:
    """Return SiT's loss (B,) at t (B,), 1 = data, by the code that trains; there t = 1 is noise."""
    draws = {"time": 1 - t, "noise": noise, "drop": torch.ones_like(t)}
    loss, _ = velocity_loss(
        ReversedTime(network), Batch(x=data, y=y, images=torch.empty(0), draws=draws), path, cfg_prob=0.0
    )
    return loss


def last_step(case: Case, name: str) -> dict[str, Any]:
    """Return rule and size of the last step, as the meaning of an output says: "last step Mean of size 0.04"."""
    match = re.search(r"last step (\w+) of size ([\d.]+)", case["outputs"][name].get("meaning", ""))
    return {"last_step": match[1], "last_step_size": float(match[2])} if match else {}
