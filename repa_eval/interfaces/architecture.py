"""Registry of architectures. A size is one line of its architecture's preset table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from repa_eval.config import from_dict
from repa_eval.errors import unknown
from repa_eval.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A network class, the dataclass of its arguments (`build(config)`), and named sizes."""

    name: str
    build: Callable[[Any], nn.Module]
    defaults: Any
    presets: Mapping[str, Mapping[str, Any]]
    read: Callable[[Shapes], dict[str, Any] | None] | None = None  # config fields told by names and shapes
    recorded: tuple[str, ...] = ()  # config fields that no shape tells and the trainer's arguments may

    def preset(self, size: str) -> Any:
        """Return the config of a named size."""
        return from_dict(self.defaults, self.presets[size])


MODELS: Registry[Architecture] = Registry(
    "model", "repa_eval.models", "repa_eval.models.encoders", group="repa_eval.models"
)


def model(
    name: str,
    *,
    defaults: Any,
    presets: Mapping[str, Mapping[str, Any]],
    read: Callable[[Shapes], dict[str, Any] | None] | None = None,
    recorded: tuple[str, ...] = (),
) -> Callable[[type], type]:
    """Register a network class that is built from one config; the class is returned unchanged.

    read: returns the config fields that a state dict's names and shapes tell, None if it is no such network; an
    architecture without it is not recognised in foreign checkpoints. recorded: fields that no shape tells; the file's
    arguments do, else the size that has its shapes.
    """

    def record(cls: type) -> type:
        MODELS.register(name, source=cls)(
            Architecture(name=name, build=cls, defaults=defaults, presets=presets, read=read, recorded=recorded)
        )
        return cls

    return record


def find_preset(size: str) -> tuple[Architecture, Any]:
    """Return (architecture, config) of a size such as "SiT-XL/2"; UserError with the nearest name."""
    sizes = {preset: architecture for _, architecture in MODELS.items() for preset in architecture.presets}
    if size not in sizes:
        raise unknown("model", size, sizes)
    return sizes[size], sizes[size].preset(size)


Shapes = Mapping[str, tuple[int, ...]]  # parameter name -> shape
