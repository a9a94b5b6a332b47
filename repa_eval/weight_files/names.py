"""The names that tensors have in a file: those of nested mappings joined, those of modules around a network cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

State = dict[str, Tensor]
# modules around others: of DistributedDataParallel and AveragedModel, torch.compile, FSDP, activation checkpoints
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
COUNTERS = frozenset({"n_averaged"})  # of torch.optim.swa_utils.AveragedModel
DEEPEST = 4  # parts of a name that may stand before the network's own


def flat(content: Any) -> State:
    """Return all tensors in nested mappings by their names, joined with dots; lists are left out."""
    if not isinstance(content, Mapping):
        return {}
    found: State = {}
    for key, value in content.items():
        if isinstance(value, Tensor):
            found[str(key)] = value
        else:
            found |= {f"{key}.{name}": tensor for name, tensor in flat(value).items()}
    return found


def unwrapped(state: Mapping[str, Tensor]) -> State:
    """Return the state dict without the names of wrappers, wherever they stand; as it is if names would meet."""
    names = {name: ".".join(part for part in name.split(".") if part not in WRAPPERS) for name in state}
    kept = {key: name for key, name in names.items() if name.rpartition(".")[2] not in COUNTERS}
    if len(set(kept.values())) < len(kept) or not all(kept.values()):
        return dict(state)
    return {name: state[key] for key, name in kept.items()}
