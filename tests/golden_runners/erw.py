"""ERW: forward of both stages, the transfer between them, names and shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from golden_runners import Arrays, Case, runner
from golden_runners.sit_models import inputs, network, rope_tables, shapes_of
from repa_eval.models.sit_erw import transfer

COPIED, MISSING = "copied", "missing_in_stage1 (stay at stage-2 init)"


def staged(config: dict[str, Any], *, keep: list[str]) -> nn.Module:
    """Return our model for official arguments: there a stub is told how many of its `depth` blocks to make."""
    depth = config["trainable_depth"] if config["warmup"] else config["depth"]
    return network("SiT-ERW", {**config, "depth": depth}, keep=keep, ignored=("trainable_depth",))


@runner("erw", "forward")
def forward(case: Case, arrays: Arrays) -> Arrays:
    model = staged(case["config"], keep=case["fill"]["kept_as_initialised"])
    with torch.no_grad():
        out, hidden = model(*inputs(arrays, "x", "t", "y"), taps=range(1, model.depth + 1))
        projected = [head(hidden[case["config"]["encoder_depth"]]) for head in model.projectors]
    return {
        **({} if out is None else {"image_out": out.numpy()}),
        **{f"zs_{i}": z.numpy() for i, z in enumerate(projected)},
        **{f"hidden_{layer}": state.numpy() for layer, state in hidden.items()},
    }


@runner("erw", "transfer", expect=lambda case: {name: np.asarray(case[name]) for name in (COPIED, MISSING)})
def transferred(case: Case, arrays: Arrays) -> Arrays:
    stub, full = (staged(given, keep=["pos_embed", *rope_tables(given)]) for given in (case["stage1"], case["stage2"]))
    copied, missing = transfer(stub, full)
    return {COPIED: np.asarray(copied), MISSING: np.asarray(missing)}


@runner("erw", "state_dict")
def state_dict(case: Case, arrays: Arrays) -> Arrays:
    size, found = case["model"].replace("SiT", "SiT-ERW"), {}
    for field, stage in (("state_dict_stage1", "stage1"), ("state_dict", "stage2")):
        given = case[stage]["config"]
        changes = {key: given[key] for key in ("use_rope", "warmup")} | {"z_dims": tuple(given["z_dims"])}
        depth = {"depth": given["trainable_depth"]} if given["warmup"] else {}
        found |= shapes_of(size, {**case, "config": given}, field=field, **changes, **depth)
    return found
