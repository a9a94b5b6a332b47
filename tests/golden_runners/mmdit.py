"""REPA's and HASTE's text-to-image MMDiT."""

from __future__ import annotations

import torch

from golden_runners import Arrays, Case, runner
from golden_runners.sit_models import inputs, network


@runner("repa", "mmdit_forward")
def forward(case: Case, arrays: Arrays) -> Arrays:
    depth = case["config"]["depth"]
    config = {**case["config"], "hidden_size": 32 * depth, "num_heads": depth}  # as the class derives them
    model = network("MMDiT", config, keep=case["fill"]["kept_as_initialised"])
    with torch.no_grad():
        velocity, hidden = model(*inputs(arrays, "x", "t", "context"), taps=range(1, depth + 1))
        projected = model.projectors[0](hidden[config["encoder_depth"]])
    means = torch.stack([hidden[layer].mean(1) for layer in range(1, depth + 1)])
    return {"out": velocity.numpy(), "hidden_mean": means.numpy(), "zs_0": projected.numpy()}
