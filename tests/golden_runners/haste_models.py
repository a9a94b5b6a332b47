"""HASTE's SiT: velocity, attention logits, projections; names and shapes."""

from __future__ import annotations

import torch

from golden_runners import Arrays, Case, runner
from golden_runners.sit_models import inputs, network, shapes_of


@runner("haste", "forward")
def forward(case: Case, arrays: Arrays) -> Arrays:
    config = case["config"]
    model, last = network("SiT", config, keep=("pos_embed",)), config["encoder_depth"]
    with torch.no_grad():
        velocity, hidden = model(*inputs(arrays, "x", "t", "y"), taps=(last,), attention=range(1, last + 1))
        projected = [head(hidden[last]) for head in model.projectors]
    return {
        "velocity": velocity.numpy(),
        "attn_logits": torch.stack([hidden["attention", layer] for layer in range(1, last + 1)]).numpy(),
        **{f"z{i}": z.numpy() for i, z in enumerate(projected)},
    }


@runner("haste", "state_dict")
def state_dict(case: Case, arrays: Arrays) -> Arrays:
    return shapes_of(case["config"]["model"], case)
