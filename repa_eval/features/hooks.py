"""Hidden states of modules that are not ours (timm, diffusers, a user's own): hooks that are always removed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from repa_eval.errors import UserError, unknown

Part = int | str | None  # which entry of a tuple (index) or of a dict (key, or index) a module's output is


@contextmanager
def captured(network: nn.Module, names: Sequence[str], *, part: Part = None) -> Iterator[dict[str, Tensor]]:
    """Yield a dict that each forward of `network` fills: name of a submodule -> its output.

    part: which entry, where a submodule returns a tuple or a dict (SD3's and Flux' blocks return the text tokens and
    the image tokens). UserError if it returns several tensors and no part is named, if a name is none of its
    submodules, or, at the end, if one of them never ran. Code that torch.compile made runs eagerly meanwhile, because
    it would bypass the hooks silently. The hooks are removed in any case.
    """
    modules = dict(network.named_modules())
    for name in names:
        if name not in modules:
            raise unknown("submodule", name, [known for known in modules if known])
    found: dict[str, Tensor] = {}

    def keep(name: str, output: Any) -> None:
        found[name] = part_of(output, part, name)

    handles = [
        modules[name].register_forward_hook(lambda _module, _given, output, name=name: keep(name, output))
        for name in names
    ]
    try:
        with torch.compiler.set_stance("force_eager"):
            yield found
    finally:
        for handle in handles:
            handle.remove()
    silent = [name for name in names if name not in found]
    if silent:
        raise UserError(f"submodule {silent[0]} never ran: the forward does not call it, or bypasses its hooks")


def part_of(output: Any, part: Part, name: str) -> Tensor:
    """Return the tensor that is meant by a module's output; UserError that lists the parts where it is not clear."""
    if isinstance(output, Tensor):
        return output
    entries = _entries(output)
    if not entries:
        raise UserError(f"submodule {name} returns a {type(output).__name__}, not a tensor: name a part of it")
    tensors = [key for key, value in entries.items() if isinstance(value, Tensor)]
    if part is None and len(tensors) == 1:
        return entries[tensors[0]]  # type: ignore[no-any-return]
    chosen = list(entries)[part] if isinstance(part, int) and -len(entries) <= part < len(entries) else part
    if chosen in tensors:
        return entries[chosen]  # type: ignore[no-any-return]
    shown = ", ".join(f"{key!r} {_shape(value)}" for key, value in entries.items())
    given = "say which with part=" if part is None else f"part={part!r} is no tensor of it; choose another part"
    raise UserError(f"submodule {name} returns a {type(output).__name__} of {len(entries)} ({shown}): {given}")


def _entries(output: Any) -> dict[Any, Any]:
    """Return the entries of a tuple, list, named tuple or mapping by index or key; none for anything else."""
    if isinstance(output, Mapping):
        return dict(output)
    if not isinstance(output, tuple | list):
        return {}
    return dict(zip(getattr(output, "_fields", range(len(output))), output, strict=True))


def _shape(value: Any) -> str:
    return "x".join(map(str, value.shape)) if isinstance(value, Tensor) else type(value).__name__
