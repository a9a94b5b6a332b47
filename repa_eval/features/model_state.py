"""A user's model is measured and given back as it was: mode, device and gradients; wrappers are looked through."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from repa_eval.errors import UserError


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside DistributedDataParallel, DataParallel, torch.compile's and PEFT's wrappers."""
    while (inner := _inside(model)) is not None:
        model = inner
    return model


def _inside(model: nn.Module) -> nn.Module | None:
    """Return what a wrapper holds, None for a network that is no wrapper."""
    if isinstance(model, DataParallel | DistributedDataParallel):
        held: Any = model.module
    else:
        wrapper: Any = model
        if hasattr(wrapper, "_orig_mod"):  # torch.compile's OptimizedModule
            held = wrapper._orig_mod
        elif callable(getattr(wrapper, "get_base_model", None)):  # PEFT: the base network, adapters inside its layers
            held = wrapper.get_base_model()
        else:
            return None
    return held if isinstance(held, nn.Module) and held is not model else None


@contextmanager
def preserved(model: nn.Module, device: torch.device | str | None = None) -> Iterator[None]:
    """Keep a model in eval mode, on `device` if one is given; afterwards, also after an error, it is as it was.

    As it was: each submodule's train/eval mode, each parameter's requires_grad, the device, and the forward that
    accelerate puts on a model for mixed precision (it is taken away meanwhile, so that the dtype is the weights').
    UserError where a device is given and the model lies on several.
    """
    modes = [(module, module.training) for module in model.modules()]
    needs = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    mixed = model.__dict__.pop("forward") if "_original_forward" in model.__dict__ else None
    before = None if device is None else _device_of(model)
    try:
        if device is not None:
            model.to(device)
        model.eval()
        yield
    finally:
        if before is not None:
            model.to(before)
        if mixed is not None:
            model.__dict__["forward"] = mixed
        for module, training in modes:
            module.training = training
        for parameter, needed in needs:
            parameter.requires_grad_(needed)


def _device_of(model: nn.Module) -> torch.device | None:
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    if len(devices) > 1:
        raise UserError(f"the model is on several devices ({', '.join(sorted(map(str, devices)))}); leave device out")
    return next(iter(devices), None)
