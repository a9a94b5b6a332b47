"""SoftREPA: the soft tokens around diffusers' SD3."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from golden_runners import Arrays, Case, runner
from golden_runners.fill import fill
from golden_runners.sit_models import inputs
from repa_eval.models.shared.soft_tokens import SoftTokens, build_sd3

KEPT = "base_model.pos_embed.pos_embed"


@runner("softrepa", "sd3_tokens_direct")
@runner("softrepa", "sd3_tokens_static")
@runner("softrepa", "sd3_tokens_text")
def sd3_tokens(case: Case, arrays: Arrays) -> Arrays:
    model = wrapped(case["config"])
    fill(model, keep=(KEPT,))
    x, t, text, pooled = inputs(arrays, "latents", "timestep", "prompt_embs", "pooled_embs")
    layers = range(1, model.depth + 1)
    with torch.no_grad():
        velocity, hidden = model(x, t, text, pooled, contexts=layers)
        plain, _ = model(x, t, text, pooled, tokens=False)
    contexts = {f"context_in_{layer - 1}": hidden["context", layer].numpy() for layer in layers}
    return {"v": velocity.numpy(), "v_no_tokens": plain.numpy(), **contexts}


def wrapped(config: dict[str, Any]) -> SoftTokens:
    layers, tokens, width = config["dc_tokens_shape"]
    return SoftTokens(
        build_sd3(config["SD3Transformer2DModel"]),
        num_tokens=tokens,
        num_layers=layers,
        token_width=width,
        time_offsets=config["use_dc_t"],
    )


@runner("softrepa", "state_dict")
def state_dict(case: Case, arrays: Arrays) -> Arrays:
    with torch.device("meta"):
        layers, tokens, width = case["state_dict"]["dc_tokens"]
        model = SoftTokens(build_sd3(case["config"]), num_layers=layers, num_tokens=tokens, token_width=width)
    return {f"state_dict:{name}": np.array(tensor.shape) for name, tensor in model.state_dict().items()}
