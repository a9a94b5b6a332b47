"""U-DiT: forward, guidance, merged feed-forwards, names and shapes; SiT-down: parameters and multiply-adds."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from golden_runners import Arrays, Case, runner
from golden_runners.sit_models import guided_halves, inputs, network, shapes_of
from repa_eval.interfaces.architecture import find_preset
from repa_eval.models.sit_down import SiTDown
from repa_eval.models.udit import STAGES, UDiT

TEACHER = 768  # width of the teacher that the printed numbers are of, where a case does not say it


@runner("u-repa", "forward")
def forward(case: Case, arrays: Arrays) -> Arrays:
    config = case["config"]
    model = network("U-DiT", config, keep=(), ignored={"cfg_scale"})
    assert isinstance(model, UDiT)
    x, t, y = inputs(arrays, "x", "t", "y")
    last = np.cumsum(config["depth"]).tolist()
    with torch.no_grad():
        out, hidden = model(x, t, y, taps=last)
        labels = torch.cat([y, model.null_condition(len(y))])
        doubled, _ = model(x.repeat(2, 1, 1, 1), t.repeat(2), labels)
        for _ in range(3):  # merging in place would go wrong the second time
            merged, _ = model.eval().merged().eval()(x, t, y)
        again, _ = model(x, t, y)
    assert torch.equal(out, again)
    maps = {f"feat_{stage}": _map(hidden[layer], model.grid(layer)) for stage, layer in zip(STAGES, last, strict=True)}
    found = {"out": out, "out_cfg": guided_halves(doubled, config["cfg_scale"]), "out_eval_merged": merged, **maps}
    return {name: found[name].numpy() for name in case["outputs"]}


def _map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, grid)


@runner("u-repa", "state_dict")
def state_dict(case: Case, arrays: Arrays) -> Arrays:
    return shapes_of(case["config"]["model"], case)


def printed(case: Case) -> Arrays:
    """Return the numbers of the json under dotted names; the paper's own, rounded, are left out."""
    flat: dict[str, Any] = {}
    for size, facts in case["models"].items():
        for key, value in facts.items():
            if isinstance(value, dict):
                flat |= {f"{size}.{key}.{part}": number for part, number in value.items()}
            elif not key.startswith("paper_"):
                flat[f"{size}.{key}"] = value
    return {name: np.asarray(value) for name, value in flat.items()}


@runner("u-repa", "parameter_counts", expect=printed)
def parameter_counts(case: Case, arrays: Arrays) -> Arrays:
    found: Arrays = {}
    for size in case["models"]:
        architecture, config = find_preset(size)
        with torch.device("meta"):
            model = architecture.build(dataclasses.replace(config, z_dims=(case.get("z_dim", TEACHER),))).to("meta")
        assert isinstance(model, SiTDown)
        found |= {f"{size}.{name}": np.asarray(value) for name, value in _facts(model).items()}
    return found


def _facts(model: SiTDown) -> dict[str, Any]:
    parameters: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        parameters[PARAMETERS[name.split(".")[0]]] += parameter.numel()
    macs = _multiply_adds(model)
    projector = macs.pop("projector")
    total = sum(macs.values())
    return {
        "hidden": model.config.hidden_size,
        "heads": model.config.num_heads,
        "stages": model.config.stages,
        "swiglu_hidden": model.config.mlp_width,
        **{f"parameters.{part}": number for part, number in parameters.items()},
        "parameters_total": sum(parameters.values()),
        **{f"macs.{part}": number for part, number in macs.items()},
        "macs_total_without_projector": total,
        "projector_macs_at_64_tokens": projector,
        "macs_total_with_projector": total + projector,
    }


# first word of a parameter's name -> part of the printed table
PARAMETERS = {
    "x_embedder": "patch_embed",
    "pos_embed": "pos_embed",
    **{f"t_embedder_{k}": "timestep_embedders" for k in (1, 2)},
    **{f"y_embedder_{k}": "label_embedders" for k in (1, 2)},
    **{f"{stage}_blocks": "blocks" for stage in ("encoder", "middle", "decoder")},
    "skip_linears": "skip_linears",
    "down": "downsample",
    "up": "upsample",
    "final_layer": "final_layer",
    "projectors": "projector",
}


def _multiply_adds(model: SiTDown) -> Counter[str]:
    """Return the multiply-adds of every linear layer and convolution in one forward of one image, by part."""
    counted: Counter[str] = Counter()

    def count(part: str) -> Any:
        def hook(module: Any, _given: Any, out: Tensor) -> None:
            counted[part] += out.numel() * module.weight[0].numel()

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(count(_part(name)))
    channels, side = model.config.in_channels, model.config.input_size
    x = torch.empty(1, channels, side, side, device="meta")
    t, y = torch.empty(1, device="meta"), torch.empty(1, dtype=torch.long, device="meta")
    _, hidden = model(x, t, y, taps=(model.middle[-1],))
    model.projectors[0](hidden[model.middle[-1]])
    return counted


def _part(name: str) -> str:
    if "adaLN" in name:
        return "adaln"
    part = PARAMETERS[name.split(".")[0]]
    if part == "blocks":
        return "blocks_middle" if name.startswith("middle") else "blocks_outer"
    return part if part in ("skip_linears", "downsample", "upsample", "projector") else "embed_and_final"
