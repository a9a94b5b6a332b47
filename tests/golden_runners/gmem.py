"""GMem's LightningDiT: forward in both modes, guidance, constants of the norms, names and shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import torch

from golden_runners import Arrays, Case, runner
from golden_runners.sit_models import inputs, network, numbers_in, rope_tables, shapes_of
from repa_eval.diffusion.guidance import Guidance, guided_velocity
from repa_eval.models.lightning_dit import LightningDiT, LightningDiTConfig

# class labels are not used there; the class predicts no sigma
IGNORED = {
    "num_classes",
    "learn_sigma",
    "use_checkpoint",
    "use_gmem",
    "projector",
    "cfg_scale",
    "cfg_interval_start",
    "t",
}
PROJECTOR = "768 out, 2048 wide"  # of the published class, and its width of snippets
PATHS = {"Linear": "linear", "GVP": "cosine"}
LAYER = 4  # whose output is aligned; the published code has no option for it


def lightning_dit(config: dict[str, Any], *, ignored: Collection[str] = (), **sizes: Any) -> LightningDiT:
    """Return the network of a case; the published one always has one projector. sizes: what the arrays say."""
    width, hidden = map(int, numbers_in(config.get("projector", PROJECTOR)))
    arguments = {"z_dims": [width], "projector_dim": hidden, "condition_size": width, **sizes, **config}
    keep = ["pos_embed", *rope_tables(config)]
    model = network("LightningDiT", arguments, keep=keep, ignored=IGNORED | {*ignored})
    assert isinstance(model, LightningDiT)
    return model


@runner("gmem", "forward")
def forward(case: Case, arrays: Arrays) -> Arrays:
    config = case["config"]
    model = lightning_dit(config, condition_size=arrays["c"].shape[-1])
    if "cfg_scale" in config:
        return guided(model, config, arrays)
    layers = range(1, config["depth"] + 1)
    keep = torch.from_numpy(arrays["keep_mask"]) if "keep_mask" in arrays else None
    with torch.no_grad():
        velocity, hidden = model(*inputs(arrays, "x", "t", "c"), taps=layers, keep=keep)
        projected = model.projectors[0](hidden[config.get("encoder_depth", LAYER)][:, ::4])  # of every fourth token
    out = {"image_out": velocity, **{f"hidden_{layer}": hidden[layer] for layer in layers}, "z_tilde": projected}
    return {name: out[name].numpy() for name in case["outputs"]}


def guided(model: LightningDiT, config: dict[str, Any], arrays: Arrays) -> Arrays:
    """Return the guided velocity at each time; the published function answers it twice, once a half."""
    x, snippets = inputs(arrays, "x", "c")
    guidance = Guidance(cfg_scale=config["cfg_scale"], low=config["cfg_interval_start"])
    found = {}
    for i, t in enumerate(config["t"]):
        with torch.no_grad():
            velocity = guided_velocity(model, x, t, snippets, guidance, guided=guidance.applies(t), dtype=torch.float32)
        found[f"out_{i}"] = velocity.repeat(2, 1, 1, 1).numpy()
    return found


@runner("gmem", "norm_eps")
def norm_eps(case: Case, arrays: Arrays) -> Arrays:
    model = lightning_dit(case["config"])
    tokens, c = inputs(arrays, "tokens", "c")
    with torch.no_grad():
        block, final = model.blocks[0](tokens, c, model.feat_rope), model.final_layer(tokens, c)
    return {"block0_out": block.numpy(), "final_out": final.numpy()}


@runner("gmem", "state_dict")
def state_dict(case: Case, arrays: Arrays) -> Arrays:
    fields = {field.name for field in dataclasses.fields(LightningDiTConfig)}
    known = {key: value for key, value in case["config"].items() if key in fields}
    return shapes_of(case["model"], case, **known)
