"""Hidden states of modules that are not ours (timm, diffusers, a user's own): hooks that always go away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from repa_eval.errors import UserError, unknown


@contextmanager
def captured(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Yield a dict that each forward of `network` fills: name of a submodule -> its output (of a tuple, the first).

    UserError if a name is none of its submodules, or, at the end, if one of them never ran (torch.compile and fused
    fast paths bypass hooks silently). The hooks are removed in any case.
    """
    modules = dict(network.named_modules())
    for name in names:
        if name not in modules:
            raise unknown("submodule", name, [known for known in modules if known])
    found: dict[str, Tensor] = {}

    def keep(name: str, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple | list) else output
        if not isinstance(tensor, Tensor):
            raise UserError(f"submodule {name} answers a {type(tensor).__name__}, not a tensor: name a part of it")
        found[name] = tensor

    handles = [
        modules[name].register_forward_hook(lambda _module, _given, output, name=name: keep(name, output))
        for name in names
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
    silent = [name for name in names if name not in found]
    if silent:
        raise UserError(f"submodule {silent[0]} never ran: the forward does not call it, or goes around its hooks")
