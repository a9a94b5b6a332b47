"""REPA's and HASTE's text-to-image MMDiT."""

from __future__ import annotations

import torch

from golden_runners import Arrays, Case, runner
from golden_runners.sit_models import inputs, network


@runner("repa", "mmdit_forward")
def forward(case: Case, arrays: Arrays) -> Arrays:
    depth = case["config"]["depth"]
    derived = {"hidden_size": 32 * depth, "num_heads": depth}  # as the class makes them
    config = {**derived, "context_size": arrays["context"].shape[-1], **case["config"]}
    model = network("MMDiT", config, keep=case["fill"]["kept_as_initialised"])
    with torch.no_grad():
        velocity, hidden = model(*inputs(arrays, "x", "t", "context"), taps=range(1, depth + 1))
        projected = [head(hidden[config["encoder_depth"]]) for head in model.projectors]
    means = torch.stack([hidden[layer].mean(1) for layer in range(1, depth + 1)])
    heads = {f"zs_{i}": tokens.numpy() for i, tokens in enumerate(projected)}
    return {"out": velocity.numpy(), "hidden_mean": means.numpy(), **heads}
