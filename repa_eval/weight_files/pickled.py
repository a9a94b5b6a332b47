"""What a pickle of weights may hold: tensors, plain values, and stand-ins for the few classes that trainers save.

torch's unpickler calls an allowed class with whatever the file says. So no class of torch or numpy is allowed: the
stand-ins take a state only, and check it.
"""

from __future__ import annotations

import argparse
import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repa_eval.errors import Failure

DEPTH = 64  # of containers within each other
SPARE = 64 << 20  # bytes that expanded tensors may declare beyond what the file holds
VIEWS = 4  # times that tensors may share one storage
LEAVES = (str, bytes, bool, int, float, complex, set, torch.dtype, torch.device, type(None))


class EmbeddingState:
    """A pickled nn.Embedding (SoftREPA's time offsets): its weight, without the module."""

    weight: Any = None

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.weight = state["_parameters"]["weight"]


class DTypeState:
    """A pickled numpy.dtype of plain numbers."""

    def __init__(self, code: str, *_flags: object) -> None:
        if code not in {f"{kind}{size}" for kind in "iuf" for size in (2, 4, 8)} | {"i1", "u1", "b1"}:
            raise ValueError(f"numpy.dtype {code!r} is not a number")
        self.code, self.order = code, "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def dtype(self) -> np.dtype[Any]:
        """Return the dtype."""
        if self.order not in ("<", ">", "|", "="):
            raise ValueError(f"numpy.dtype: byte order {self.order!r}")
        return np.dtype(f"{self.order}{self.code}")


class ArrayState:
    """A pickled numpy.ndarray of plain numbers."""

    array: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, data = state
        dtype, count = kind.dtype(), math.prod(shape)
        if min(shape, default=1) < 0 or count * dtype.itemsize != len(data):
            raise ValueError(f"numpy.ndarray of {shape} in {len(data)} bytes")
        self.array = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C").copy()


def rebuild_array(*_arguments: object) -> ArrayState:
    """Stand in for numpy's _reconstruct, which is followed by the array's state."""
    return ArrayState()


ALLOWED: list[Any] = [
    argparse.Namespace,
    OrderedDict,
    (EmbeddingState, "torch.nn.modules.sparse.Embedding"),
    (ArrayState, "numpy.ndarray"),
    (DTypeState, "numpy.dtype"),
    (rebuild_array, "numpy.core.multiarray._reconstruct"),
    (rebuild_array, "numpy._core.multiarray._reconstruct"),
]


def plain(content: Any, where: str, *, size: int, copied: bool = False) -> Any:
    """Return `content` in plain containers, its tensors checked; Failure for what a checkpoint cannot hold.

    Tensors are dense. size: of the file in bytes, which bounds what tensors may declare; copied: clone them.
    """
    return _Walk(where, VIEWS * size + SPARE, copied).visit(content, 0)


class _Walk:
    """Visits every value once; a container that holds itself is refused."""

    def __init__(self, where: str, limit: int, copied: bool) -> None:
        self.where, self.limit, self.copied, self.declared = where, limit, copied, 0
        self.visited: dict[int, tuple[Any, Any]] = {}  # id -> (the value itself, so that its id stays its own, result)

    def visit(self, value: Any, depth: int) -> Any:
        if isinstance(value, LEAVES):
            return value
        if id(value) in self.visited:
            result = self.visited[id(value)][1]
            if result is ...:
                self.refuse("a container holds itself")
            return result
        if depth > DEPTH:
            self.refuse(f"containers are nested more than {DEPTH} deep")
        self.visited[id(value)] = (value, ...)
        result = self.rebuilt(value, depth + 1)
        self.visited[id(value)] = (value, result)
        return result

    def rebuilt(self, value: Any, depth: int) -> Any:
        if isinstance(value, Tensor):
            return self.tensor(value)
        if isinstance(value, dict):  # not value.items(): an OrderedDict of a pickle may carry attributes of that name
            return {self.visit(key, depth): self.visit(item, depth) for key, item in dict.items(value)}
        if isinstance(value, (list, tuple)):
            items = [self.visit(item, depth) for item in value]
            return items if isinstance(value, list) else tuple(items)
        if isinstance(value, argparse.Namespace):
            return argparse.Namespace(**{str(key): self.visit(item, depth) for key, item in vars(value).items()})
        if isinstance(value, EmbeddingState) and isinstance(value.weight, Tensor):
            value.weight = self.visit(value.weight, depth)
            return value
        if isinstance(value, ArrayState) and value.array is not None:
            return value.array
        return self.refuse(f"it holds a {type(value).__name__}")

    def tensor(self, value: Tensor) -> Tensor:
        kinds = {"sparse": value.layout != torch.strided, "quantized": value.is_quantized, "nested": value.is_nested}
        kinds["meta"] = value.is_meta
        wrong = [name for name, applies in kinds.items() if applies]
        if wrong:
            self.refuse(f"it holds a {wrong[0]} tensor; save dense ones")
        self.declared += value.numel() * value.element_size()
        if self.declared > self.limit:
            self.refuse("its tensors declare more numbers than the file holds")
        return value.detach().clone() if self.copied else value.detach()

    def refuse(self, why: str) -> Any:
        raise Failure(f"{self.where} is not a readable checkpoint: {why}")
