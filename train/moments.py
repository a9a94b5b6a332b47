"""The optimiser's state of a checkpoint: checked against the parameters before torch computes with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from repa_eval.errors import Failure

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's, of the shape of their parameter
ENTRIES = ("step", *MOMENTS)


def load_moments(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> list[nn.Parameter]:
    """Put recorded moments into a fresh AdamW; return the parameters that it holds none for: never updated ones.

    torch's fused AdamW writes beyond a moment that is too short. The settings of the groups are the optimiser's own:
    they follow from the recipe. Failure if moments and parameters do not fit.
    """
    own = optimizer.state_dict()["param_groups"]
    sizes, ours = ([_size(group) for group in groups] for groups in (saved.get("param_groups", ()), own))
    if sizes != ours:
        raise Failure(f"opt holds groups of {sizes} parameters, not of {ours}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = saved.get("state")
    if not isinstance(state, Mapping) or not set(state) <= set(range(len(parameters))):
        raise Failure(f"opt holds a state of other parameters than {len(parameters)}")
    for number, entry in state.items():
        if (wrong := _misfit(entry, parameters[number])) is not None:
            raise Failure(f"opt, parameter {number} of shape {list(parameters[number].shape)}: {wrong}")
    optimizer.load_state_dict({"state": dict(state), "param_groups": own})
    return [parameter for number, parameter in enumerate(parameters) if number not in state]


def _size(group: Any) -> int:
    members = group.get("params") if isinstance(group, Mapping) else None
    return len(members) if isinstance(members, list | tuple) else -1


def _misfit(entry: Any, parameter: nn.Parameter) -> str | None:
    """Return what is wrong with a parameter's state, None if it fits."""
    if not isinstance(entry, Mapping) or set(entry) != set(ENTRIES):
        return f"expected {', '.join(ENTRIES)}"
    for name in ENTRIES:
        value, shape = entry[name], parameter.shape if name in MOMENTS else torch.Size()
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape != shape:
            what = f"{value.dtype} of shape {list(value.shape)}" if isinstance(value, Tensor) else f"{value!r:.40}"
            return f"{name} is {what}"
    return None
