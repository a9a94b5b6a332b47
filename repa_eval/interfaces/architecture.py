"""Registry of architectures, and what each of them can do. A size is one line of its architecture's preset table.

A training method names abilities, never architectures, so that a model of a user's own trains with every method that it
is able to be trained with.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from repa_eval.config import from_dict
from repa_eval.diffusion.model import DiffusionModel
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
    abilities: frozenset[str] = frozenset()

    def has(self, ability: str) -> bool:
        """Return whether the network has an ability; see `abilities_of`."""
        return ability in self.abilities

    def fits(self, required: Collection[str]) -> bool:
        """Return whether a method that requires these abilities can train the network.

        The network must have all of them, and the method must name whatever the network's forward has to be given.
        """
        return set(required) <= self.abilities and self.abilities & CONDITIONS <= set(required)

    def preset(self, size: str) -> Any:
        """Return the config of a named size."""
        return from_dict(self.defaults, self.presets[size])


# what `forward` must be given beside x and t: a method that does not name it cannot call the network
CONDITIONS = frozenset({"class labels", "snippets", "text", "class token"})
CONDITION_OF = {"class": "class labels", "snippet": "snippets", "text": "text"}


def abilities_of(network: Any) -> frozenset[str]:
    """Return the abilities that a network class shows, none for an encoder.

    "velocity": it answers noise - data at t, 1 = noise. "class labels", "snippets" or "text": its condition.
    "class token": `forward` takes and denoises one. "two times": `forward` takes a second time `r`. "taps": it returns
    hidden states (B, N, D). "one grid": these have one N and one D in all layers; else "several grids", told by `grid`
    and `width`. "attention logits": it returns them.
    """
    if not (isinstance(network, type) and issubclass(network, DiffusionModel)):
        return frozenset()
    arguments = inspect.signature(network.forward).parameters
    shown = {
        "velocity": network.native == DiffusionModel.native,
        CONDITION_OF[network.conditioning]: True,
        "class token": network.has_class_token,
        "two times": network.times == 2,
        "taps": "taps" in arguments,
        "one grid": network.one_grid,
        "several grids": not network.one_grid,
        "attention logits": "attention" in arguments,
    }
    return frozenset(ability for ability, present in shown.items() if present)


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
    abilities: Collection[str] = (),
) -> Callable[[type], type]:
    """Register a network class that is built from one config; the class is returned unchanged.

    read: returns the config fields that a state dict's names and shapes tell, None if it is no such network; an
    architecture without it is not recognised in foreign checkpoints. recorded: fields that no shape tells; the file's
    arguments do, else the size that has its shapes. abilities: further than those that `abilities_of` reads from it.
    """

    def record(cls: type) -> type:
        MODELS.register(name, source=cls)(
            Architecture(
                name=name,
                build=cls,
                defaults=defaults,
                presets=presets,
                read=read,
                recorded=recorded,
                abilities=abilities_of(cls) | frozenset(abilities),
            )
        )
        return cls

    return record


def find_preset(size: str) -> tuple[Architecture, Any]:
    """Return (architecture, config) of a size such as "SiT-XL/2"; UserError with the nearest name."""
    sizes = {preset: architecture for _, architecture in MODELS.items() for preset in architecture.presets}
    if size not in sizes:
        raise unknown("model", size, sizes)
    return sizes[size], sizes[size].preset(size)


def architectures_for(required: Collection[str]) -> list[str]:
    """Return the names of the architectures that fit; UserError for an ability that none has."""
    known = {ability for _, architecture in MODELS.items() for ability in architecture.abilities}
    for ability in sorted(set(required) - known):
        raise unknown("ability", ability, known)
    return [name for name, architecture in MODELS.items() if architecture.fits(required)]


Shapes = Mapping[str, tuple[int, ...]]  # parameter name -> shape
