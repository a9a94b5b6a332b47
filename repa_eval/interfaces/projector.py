"""The contract of a projector: the head that maps a model's hidden states to the width of a teacher's tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

from repa_eval.registry import Registry

# (width D of the hidden states, width Z of the teacher's tokens, hidden width of the head) -> a module that maps
# patch tokens (B, N, D) to (B, N, Z); N tokens lie row by row on a grid
Builder = Callable[[int, int, int], nn.Module]
B = TypeVar("B", bound=Builder)
PROJECTORS: Registry[Builder] = Registry("projector", "repa_eval.train.projectors", group="repa_eval.projectors")


def projector(name: str) -> Callable[[B], B]:
    """Register a projector, a class or a function that is called as `Builder`; it is returned unchanged."""

    def record(builder: B) -> B:
        PROJECTORS.register(name)(builder)
        return builder

    return record
