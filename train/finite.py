"""Weights that are no longer numbers: looked for before a checkpoint is saved and before one is resumed from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from repa_eval.errors import Failure

KEPT = "the checkpoints before it are kept"


def refuse_losses(step: int, values: Mapping[str, float]) -> None:
    """Failure if a term of the loss or the norm of its gradient is NaN or infinite. step: the updates made so far."""
    if not torch.tensor(list(values.values()), dtype=torch.float64).isfinite().all():
        raise Failure(f"step {step}: a loss is not finite ({dict(values)}); {KEPT}")


def refuse_weights(step: int, model: nn.Module, ema: nn.Module, extras: nn.Module, optimizer: Any) -> None:
    """Failure if a weight, an average or a moment of the optimiser is NaN or infinite.

    A buffer may hold -inf, as masks do; those of the method's own modules (extras) may hold anything.
    """
    for kind, module, buffers in (("weights", model, True), ("average", ema, True), ("method", extras, False)):
        parameters = dict(module.named_parameters())
        tensors = {**dict(module.named_buffers()), **parameters} if buffers else parameters
        if bad := unfinite(tensors, weights=parameters):
            raise Failure(f"step {step}: {kind} {_some(bad)} not finite, and was not saved; {KEPT}")
    if bad := unfinite(dict(_tensors(optimizer.state_dict()["state"]))):
        raise Failure(f"step {step}: optimiser {_some(bad)} not finite, and was not saved; {KEPT}")


def refuse_saved(saved: Mapping[str, Any], where: str) -> None:
    """Failure if what a checkpoint holds of model, average or optimiser is NaN or infinite."""
    for kind in ("model", "ema", "opt"):
        if bad := unfinite(dict(_tensors(saved[kind]))):
            raise Failure(f"{where}: {kind} {_some(bad)} not finite")


def unfinite(tensors: Mapping[str, Tensor], *, weights: Mapping[str, object] | None = None) -> list[str]:
    """Return the names of tensors with NaN or infinity; only those in `weights` are named for -inf alone."""
    looked_at = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()}
    if not looked_at:
        return []
    # the extremes pass NaN on and take no memory; all are fetched from the device at once
    device = next(iter(looked_at.values())).device
    extremes = [torch.stack(torch.aminmax(tensor.detach())).float().to(device) for tensor in looked_at.values()]
    least, most = torch.stack(extremes).cpu().unbind(1)
    good = (most < math.inf) & ~least.isnan()
    exact = torch.tensor([weights is not None and name in weights for name in looked_at])
    return [name for name, fine in zip(looked_at, good & (least.isfinite() | ~exact), strict=True) if not fine]


def _tensors(tree: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in nested containers under their dotted keys."""
    if isinstance(tree, Tensor):
        yield name, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _tensors(value, f"{name}.{key}" if name else str(key))
    elif isinstance(tree, list | tuple):
        for number, value in enumerate(tree):
            yield from _tensors(value, f"{name}.{number}")


def _some(names: list[str]) -> str:
    return f"{names[0]} is" if len(names) == 1 else f"{names[0]} and {len(names) - 1} more are"
