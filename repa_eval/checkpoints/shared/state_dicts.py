"""State dicts as trainers, wrappers and averages save them, found in a file and given the network's own names.

A network may lie beside others (Lightning's `state_dict` with `model.`, `ema_model.`, `vae.`), its names may carry
those of wrappers, and its averages may have no names at all.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from repa_eval.errors import Failure, UserError
from repa_eval.interfaces.checkpoint_layout import Request
from repa_eval.weight_files.names import DEEPEST, State, flat, unwrapped

TRAINED = frozenset({"weight", "bias"})  # last parts of the names of parameters that every trainer trains
LEAST = 8  # tensors of a network
AVERAGED = re.compile(r"(?<![a-z])(ema|avg|averaged?|shadow|swa)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Located:
    """A network's tensors by its own names. prefix: what stood before them in the file; others: networks beside it."""

    state: State
    prefix: str = ""
    others: tuple[str, ...] = ()

    @property
    def averaged(self) -> bool:
        """Whether the names in the file call the weights an average."""
        return bool(AVERAGED.search(self.prefix))


def locate(state: State, request: Request, path: Path, *, is_network: Callable[[State], bool]) -> Located | None:
    """Return the network in a state dict: all of it, or what lies under one prefix; None where there is none.

    is_network: whether a state dict is that of a known network. UserError where several could be meant.
    """
    for whole in (state, unwrapped(state)):
        if is_network(whole):
            return Located(whole)
    under = {prefix: unwrapped(part) for prefix, part in parts(state).items()}
    networks = {prefix: part for prefix, part in under.items() if is_network(part)}
    found = {prefix: part for prefix, part in networks.items() if not _lies_in(prefix, networks)}
    if not found:
        return None
    averaged = [prefix for prefix in found if AVERAGED.search(prefix)]
    trained = [prefix for prefix in found if prefix not in averaged]
    wanted = (averaged or trained) if request.weights == "ema" else trained
    if not wanted:
        raise UserError(f"{path} holds averaged weights only ({', '.join(averaged)}); leave --weights out")
    if len(wanted) > 1:
        raise UserError(f"{path} holds several networks ({', '.join(wanted)}); save one of them in a file of its own")
    return Located(found[wanted[0]], wanted[0], tuple(prefix for prefix in found if prefix != wanted[0]))


def _lies_in(prefix: str, others: Collection[str]) -> bool:
    """Return whether a shorter prefix names the same network (what lies between is a wrapper)."""
    pieces = prefix.split(".")
    return any(".".join(pieces[:end]) in others for end in range(1, len(pieces)))


def parts(state: State) -> dict[str, State]:
    """Return {prefix: what lies under it} for every prefix of a few parts with enough tensors for a network."""
    parts: dict[str, State] = defaultdict(dict)
    for name, tensor in state.items():
        pieces = name.split(".")
        for depth in range(1, min(len(pieces), DEEPEST + 1)):
            parts[".".join(pieces[:depth])][".".join(pieces[depth:])] = tensor
    return {prefix: part for prefix, part in parts.items() if len(part) >= LEAST}


def named_state(value: Any, trained: Any, *, path: Path, weights: str) -> State:
    """Return an entry of a trainer's file as a state dict, which may lie deeper in it or be a list without names.

    trained: the entry `model` of the file, whose names and order a list of averages has (diffusers' EMAModel,
    torch_ema). Failure where there are no tensors, or none that can be named.
    """
    shadow = value.get("shadow_params") if isinstance(value, Mapping) else value
    if isinstance(shadow, list | tuple) and shadow and all(isinstance(tensor, Tensor) for tensor in shadow):
        named = _named(shadow, unwrapped(flat(trained)))
        if named is None:
            raise Failure(
                f"{path}: its {weights} weights are a list of {len(shadow)} tensors without names, which do not follow "
                "those of its `model`; use --weights online"
            )
        return named
    state = flat(value)
    if not state:
        other = "online" if weights == "ema" else "ema"
        kind = "empty" if value is None or value == {} else f"no state dict, but a {type(value).__name__}"
        raise Failure(f"{path}: its {weights} weights are {kind}; use --weights {other}")
    return state


def _named(tensors: Any, trained: State) -> State | None:
    """Return `trained` with the averages of its parameters, which come in its order; None where that is not unique.

    What has no average (buffers, parameters that are not trained) is taken from `trained`.
    """
    first = _assigned(list(tensors), list(trained.items()))
    last = _assigned(list(tensors)[::-1], list(trained.items())[::-1])
    if first is None or last is None or list(first) != list(last)[::-1]:
        return None
    if any(name.rpartition(".")[2] in TRAINED for name in set(trained) - set(first)):
        return None
    return {**trained, **first}


def _assigned(tensors: list[Tensor], named: list[tuple[str, Tensor]]) -> State | None:
    """Return each tensor under the first name of its shape after that of the tensor before it."""
    found: State = {}
    remaining = iter(named)
    for tensor in tensors:
        name = next((name for name, own in remaining if own.shape == tensor.shape), None)
        if name is None:
            return None
        found[name] = tensor
    return found


def step_of(value: Any) -> int | None:
    """Return a number of steps >= 0 as an int, None for anything that is none."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) == float("inf"):
        return None
    return int(value) if value >= 0 and value == int(value) else None
