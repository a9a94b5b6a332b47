"""The contract of a training method: one file, one decorator, one frozen dataclass.

Methods are final: none inherits from another; what two of them share is a function in train/losses.py.
"""

from __future__ import annotations

import dataclasses
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from repa_eval.errors import UserError
from repa_eval.interfaces.image_source import ImageSource
from repa_eval.interfaces.teacher import Teacher
from repa_eval.registry import Registry

C = TypeVar("C", bound=type["Method"])
_log = logging.getLogger(__name__)


def same(rows: Tensor) -> Tensor:
    """Return the rows: those of a batch that one process computes at once are the whole batch's."""
    return rows


@dataclass
class Batch:
    """What a method gets to compute its losses from.

    x: clean latents (B, C, H, W), float32, with gradients where the model encodes images itself. y: labels (B,), int64;
    or text features (B, L, D), float32, where the data bring them in place of captions.
    images: uint8 (B, C, H, W).
    teachers: patch tokens (B, T, D) of every teacher; class_tokens: its class token (B, D), None if it has none;
    attention: {layer: logits (B, heads, T, T)} of the layers that `attention_layers()` names. All three are empty where
    the teachers do not run: where `active(step)` is false or `stopped(modules)` is true.
    architecture: the network's config, which some draws' shapes depend on.
    draws: every random tensor of the step, made by `draws()`.
    lead: the draws (1, ...) of the first image of the whole batch, which lies over all processes and parts: what all of
    them share. whole: the y of that batch (N, ...), where `needs` names "whole batch"; first: the place of x[0] in it.
    modules: the trainable extras made by `modules()`.   ema: the averaged model, for methods that learn from it.
    gather: from rows of these images (B, ...) to those of the whole batch (N, ...), in its order over all processes and
    with gradients; the identity where one process computes the batch at once. A term that compares images reads the
    others through it; several processes refuse one that does not.
    encoded: whether x is what the model denoises; else the trainer puts `model.encode(x)` in its place before `losses`.
    """

    x: Tensor
    y: Tensor
    images: Tensor
    architecture: Any = None
    teachers: list[Tensor] = field(default_factory=list)
    class_tokens: list[Tensor | None] = field(default_factory=list)
    attention: list[dict[int, Tensor]] = field(default_factory=list)
    draws: dict[str, Tensor] = field(default_factory=dict)
    lead: dict[str, Tensor] = field(default_factory=dict)
    whole: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    first: int = 0
    modules: nn.ModuleDict = field(default_factory=nn.ModuleDict)
    ema: nn.Module | None = None
    gather: Callable[[Tensor], Tensor] = same
    encoded: bool = False


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A training that makes up a run together with others, each of a network of its own.

    method: what trains in it. until: the step at which it ends, counted from the start of the run; None: the last.
    samples: whether images can be generated from its network; where they cannot, nothing is measured.
    """

    method: Method
    until: int | None = None
    samples: bool = True


class Method(ABC):
    """A training method. Its options are the fields of the dataclass."""

    systems: ClassVar[tuple[str, ...]] = ()  # what its checkpoints are; the first is the name in tables
    paper: ClassVar[str] = ""  # arXiv number
    needs: ClassVar[frozenset[str]] = frozenset({"labels"})  # of "labels", "images", "captions", "ema", "whole batch"
    # abilities of the networks that it can train (interfaces/architecture.py), among them all that they must be given
    requires: ClassVar[frozenset[str]] = frozenset({"velocity", "class labels", "taps", "one grid"})
    samples: ClassVar[bool] = True  # whether images can be generated from its model
    finish: ClassVar[str] = "repa-eval convert {checkpoint} --to converted/{run}"  # where none can: what comes next
    start_weights: ClassVar[str] = "ema"  # of what it starts from, or "online": the trained weights

    def teachers(self) -> list[str]:
        """Return the names of the frozen encoders whose tokens the losses read."""
        return []

    def attention_layers(self) -> Sequence[Collection[int]]:
        """Return, teacher by teacher, the blocks (1-based) whose attention logits the losses read."""
        return ()

    def stages(self) -> Sequence[Stage]:
        """Return the trainings that run in turn, the last one with `self` and without an end."""
        return (Stage(method=self),)

    def architecture(self, config: Any, widths: Sequence[int]) -> Any:
        """Return the model's config as this method changes it; widths: feature sizes of the teachers."""
        return config

    def fitted(self, config: Any, images: Any, teachers: Sequence[Teacher]) -> Any:
        """Return the model's config for these images and teachers; `architecture` unless more than widths matters."""
        return self.architecture(config, [teacher.width for teacher in teachers])

    def aligned_layer(self) -> int | None:
        """Return the number of the block whose output is aligned with a teacher, if one is."""
        return None

    def aligned_until(self) -> int | None:
        """Return the step from which on nothing is aligned, counted from 0; None if alignment lasts to the end."""
        return None

    def modules(self, model: Any, teachers: Sequence[Teacher]) -> nn.ModuleDict:
        """Return the trainable modules besides the model, saved with the checkpoint. teachers: of `teachers()`."""
        return nn.ModuleDict()

    def starts_from(self) -> str | None:
        """Return the checkpoint that a fresh run takes over first; a later stage takes over the one before it."""
        return None

    def take_over(self, model: nn.Module, before: nn.Module) -> None:
        """Put into a fresh model, in place, what the network trained before it has to give. Its average starts so."""
        take_over_weights(model, before)

    def prepare(self, model: nn.Module, images: ImageSource, teachers: Sequence[Teacher]) -> None:  # noqa: B027
        """Compute, once before the first step, what a fresh model has to know of the training images: its buffers."""

    def active(self, step: int) -> bool:
        """Return whether the teachers are needed at this step."""
        return True

    def stopped(self, modules: nn.ModuleDict) -> bool:
        """Return whether training itself found that the teachers are needed no more, as a buffer of the extras says."""
        return False

    def trainable(self, model: nn.Module, modules: nn.ModuleDict) -> Iterable[nn.Parameter]:
        """Yield the parameters to optimise."""
        yield from (p for p in (*model.parameters(), *modules.parameters()) if p.requires_grad)

    def parameter_groups(self, model: nn.Module, modules: nn.ModuleDict) -> Sequence[dict[str, Any]]:
        """Return the optimiser's groups: each has `params`, and may have `lr`, `weight_decay`, `betas` and `eps`.

        What a group does not name is the recipe's. The recipe's schedule multiplies a group's own `lr` too.
        """
        return [{"params": list(self.trainable(model, modules))}]

    @abstractmethod
    def draws(self, batch: Batch, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """Return every random tensor of a step, row i from generator i; nothing random happens elsewhere."""

    @abstractmethod
    def losses(self, model: Any, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return named, weighted terms, a scalar or one value per sample; the sum of their means is optimised."""

    def after_step(self, model: Any, modules: nn.ModuleDict, batch: Batch, step: int) -> None:  # noqa: B027
        """Change buffers or weights after update number `step`, without gradients; the average is updated by then.

        batch: the last part that the losses were computed on.
        """


def take_over_weights(model: nn.Module, before: nn.Module) -> None:
    """Copy all weights of a network that fit by name and shape into a fresh model, and name those that stay fresh.

    UserError for a network of another time direction, and where less than half of the model's numbers would be copied.
    """
    mine, theirs = model.state_dict(), before.state_dict()
    fitting = {name for name, tensor in mine.items() if name in theirs and theirs[name].shape == tensor.shape}
    share = sum(mine[name].numel() for name in fitting) / max(1, sum(tensor.numel() for tensor in mine.values()))
    native = [getattr(network, "native", None) for network in (before, model)]
    if share < 0.5 or native[0] != native[1]:
        why = f"only {share:.0%} of its weights fit" if native[0] == native[1] else "it predicts something else"
        raise UserError(f"start_from: a {type(before).__name__} cannot be trained on as {type(model).__name__}: {why}")
    model.load_state_dict({name: theirs[name] for name in fitting}, strict=False)
    fresh = sorted(set(mine) - fitting)
    if fresh:
        shown = ", ".join(fresh[:3]) + (f" and {len(fresh) - 3} more" if len(fresh) > 3 else "")
        _log.warning("start_from: %d of %d tensors are taken over; fresh are %s", len(fitting), len(mine), shown)


METHODS: Registry[type[Method]] = Registry("method", "repa_eval.train.methods", group="repa_eval.methods")


def method(name: str) -> Callable[[C], C]:
    """Register a Method class, a dataclass whose fields have defaults; it is returned unchanged."""

    def record(cls: C) -> C:
        if flaw := _flaw(cls):
            raise UserError(f"method {name!r}: {getattr(cls, '__qualname__', cls)} {flaw}")
        METHODS.register(name)(cls)
        return cls

    return record


def name_of(chosen: Method) -> str:
    """Return the registered name of a method object."""
    return next(name for name, cls in METHODS.items() if cls is type(chosen))


def _flaw(cls: Any) -> str:
    """Return what keeps a class from being used as a method, beside members that it lacks; "" if nothing does."""
    if not (isinstance(cls, type) and issubclass(cls, Method)):
        return "is no subclass of Method: write class NAME(Method)"
    if not dataclasses.is_dataclass(cls):
        return "is no dataclass: write @method above @dataclass(frozen=True, kw_only=True)"
    for each in dataclasses.fields(cls):
        if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
            return f"has no default for {each.name}: every option needs one"
    return ""
