"""Which function it was: a name and a hash of what it does, for cache keys and protocols."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

import numpy as np
from torch import Tensor, nn

from repa_eval.runtime.hashing import digest_module


def call_identity(call: Callable[..., Any], *, apart_from: nn.Module | None = None) -> str:
    """Return the qualified name of a callable and 12 hex digits of a hash of its code and of the values it holds.

    Values are defaults, closure variables and arguments of functools.partial: plain ones, arrays and tensors by their
    content, networks by their weights (`apart_from` by its name: its weights are hashed elsewhere). What the code
    reads from global variables is not seen; where it matters, name the call yourself.
    """
    content = hashlib.sha256()
    for piece in _pieces(call, apart_from):
        content.update(piece)
        content.update(b"\0")
    name = getattr(call, "__qualname__", type(call).__qualname__)
    return f"{name} {content.hexdigest()[:12]}"


def _pieces(value: Any, apart_from: nn.Module | None, depth: int = 0) -> Iterator[bytes]:
    """Yield what distinguishes a value from others."""
    if value is apart_from and value is not None:
        yield b"the network"
    elif isinstance(value, nn.Module):
        known = getattr(value, "digest", None)  # a teacher knows its own
        yield f"{type(value).__qualname__} {known if isinstance(known, str) else digest_module(value)}".encode()
    elif isinstance(value, Tensor | np.ndarray):
        array = np.ascontiguousarray(value.detach().float().cpu().numpy() if isinstance(value, Tensor) else value)
        yield f"{array.dtype} {array.shape}".encode()
        yield array.tobytes()
    elif value is None or isinstance(value, bool | int | float | complex | str | bytes):
        yield repr(value).encode()
    elif isinstance(value, CodeType):
        yield value.co_code
        for constant in (*value.co_names, *value.co_consts):
            yield from _pieces(constant, apart_from, depth)
    elif depth > 3:
        yield type(value).__qualname__.encode()
    elif isinstance(value, tuple | list | set | frozenset | dict):
        entries = value.items() if isinstance(value, dict) else value
        for entry in entries if isinstance(value, tuple | list | dict) else sorted(entries, key=repr):
            yield from _pieces(entry, apart_from, depth + 1)
    else:
        yield from _callable_pieces(value, apart_from, depth + 1)


def _callable_pieces(value: Any, apart_from: nn.Module | None, depth: int) -> Iterator[bytes]:
    """Yield the pieces of a function, method, partial or any other object."""
    if isinstance(value, functools.partial):
        yield from _pieces((value.func, value.args, value.keywords), apart_from, depth)
        return
    yield getattr(value, "__qualname__", type(value).__qualname__).encode()
    holder = getattr(value, "__self__", None)
    if isinstance(holder, nn.Module):
        yield from _pieces(holder, apart_from, depth)
    function = getattr(value, "__func__", value)
    code = getattr(function, "__code__", None)
    if code is None:
        return
    cells = [cell.cell_contents for cell in function.__closure__ or () if _filled(cell)]
    yield from _pieces((code, function.__defaults__, function.__kwdefaults__, cells), apart_from, depth)


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018  (reading is the test)
    except ValueError:
        return False
    return True
