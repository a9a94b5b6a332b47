"""The weights of golden cases, which are made by a rule and not stored (golden/README.md, "Weights without files")."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import Tensor, nn


def fill(module: nn.Module, *, keep: Collection[str] = ()) -> None:
    """Overwrite the floating tensors of `module.state_dict()` in place; those named in `keep` stay as they are."""
    state = module.state_dict()
    values = fill_values(state, keep=keep)
    with torch.no_grad():
        for name, value in values.items():
            state[name].copy_(value)


def fill_values(state: Mapping[str, Tensor], *, keep: Collection[str] = ()) -> dict[str, Tensor]:
    """Return the filled float32 tensors for a state dict with the OFFICIAL names; the values of `state` are not read.

    The k-th of the sorted names draws from RandomState(k); kept names and integer tensors count for k but are absent
    from the result. KeyError where `keep` names what is not there: a misspelt name would be filled silently.
    """
    if absent := sorted(set(keep) - set(state)):
        raise KeyError(f"keep names {absent}, not among the parameters")
    return {
        name: _value(name, tuple(state[name].shape), k)
        for k, name in enumerate(sorted(state))
        if name not in keep and state[name].is_floating_point()
    }


def _value(name: str, shape: tuple[int, ...], k: int) -> Tensor:
    v = np.asarray(np.random.RandomState(k).standard_normal(shape))
    if len(shape) >= 2:
        v = v / math.sqrt(math.prod(shape[1:]))
    elif name.endswith("running_var"):
        v = 1.0 + 0.2 * np.abs(v)
    elif name.endswith("weight"):
        v = 1.0 + 0.2 * v
    else:
        v = 0.2 * v
    return torch.from_numpy(np.asarray(v, dtype=np.float32))
