"""REG: forward with the class token, the norms' eps, names and shapes."""

from __future__ import annotations

import torch

from golden_runners import Arrays, Case, runner
from golden_runners.sit_models import inputs, network, shapes_of


@runner("reg", "forward")
def forward(case: Case, arrays: Arrays) -> Arrays:
    config = case["config"]
    model = network("SiT-REG", config, keep=case["fill"]["kept_as_initialised"])
    x, t, y, cls_token = inputs(arrays, "x", "t", "y", "cls_token")
    with torch.no_grad():
        out, hidden = model(x, t, y, cls_token=cls_token, taps=range(1, config["depth"] + 1))
        projected = [head(hidden[config["encoder_depth"]]) for head in model.projectors]
    return {
        "image_out": out.velocity.numpy(),
        "cls_out": out.class_velocity.numpy(),
        **{f"zs_{i}": z.numpy() for i, z in enumerate(projected)},
        **{f"hidden_{layer}": state.numpy() for layer, state in hidden.items()},
    }


@runner("reg", "norm_eps")
def norm_eps(case: Case, arrays: Arrays) -> Arrays:
    model = network("SiT-REG", case["config"], keep=case["fill"]["kept_as_initialised"])
    tokens, c, cls_in = inputs(arrays, "tokens", "c", "cls_in")
    with torch.no_grad():
        patches, cls_out = model.final_layer(tokens, c)
        return {
            "block0_out": model.blocks[0](tokens, c).numpy(),
            "final_image_tokens": patches.numpy(),
            "final_cls": cls_out.numpy(),
            "wg_norm_out": model.wg_norm(0.05 * model.cls_projectors2(cls_in)).numpy(),
        }


@runner("reg", "state_dict")
def state_dict(case: Case, arrays: Arrays) -> Arrays:
    return shapes_of(case["model"].replace("SiT", "SiT-REG"), case)
