"""The contract of a sampler: a function from noise to latents, its options, and the models that it applies to.

A sampler is one file in sampling/samplers/, or a plug-in: `@sampler("name", ...)` before its function.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor

from repa_eval.config import from_dict, option, to_dict
from repa_eval.diffusion.conventions import answers_velocity
from repa_eval.diffusion.guidance import Guidance
from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.diffusion.model import NO_NULL_LABEL, DiffusionModel
from repa_eval.errors import UserError, unknown
from repa_eval.registry import Registry
from repa_eval.runtime.seeding import generators, normal

DEFAULT = "repa"  # of models that no sampler claims
PATH, INTERVAL = "path", "interval"  # settings that a sampler may ignore


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """The options of a sampler that has none."""


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A registered sampler, and what it declares.

    integrate: (model, noise (B, C, H, W), y, sample indices (B,), settings) -> latents (B, C, H, W).
    applies: whether it can sample a model. default_for: whether a model is sampled by it unless another is chosen; also
    asked of a model's class, so that it may read what a class declares (native, conditioning, has_class_token, times).
    named_in_runs: whether the evaluations of a training run name it; False keeps the records of older runs.
    options: a frozen dataclass of its own options. only_in: {option: the value of the option `mode` that it needs}.
    uint8: published rule from floats to uint8, "floor" or "round". guided_channels: how many channels are guided where
    a model has more and the user names no number; None: all. reads: of "path" and "interval", the settings that matter.
    least_steps: smallest num_steps. record: protocol entries that replace the default ones (see `entries`).
    """

    name: str
    integrate: Integrate
    applies: Callable[[DiffusionModel], bool]
    default_for: Callable[[Any], bool]
    named_in_runs: bool = True
    options: type[Any] = NoOptions
    only_in: Mapping[str, str] = field(default_factory=dict)
    uint8: str = "floor"
    guided_channels: int | None = None
    reads: Collection[str] = (PATH, INTERVAL)
    least_steps: int = 1
    record: Callable[[SamplerSettings], dict[str, object]] | None = None

    @property
    def option_names(self) -> list[str]:
        """The names of its own options."""
        return [item.name for item in dataclasses.fields(self.options)]

    def read_options(self, values: Any, *, spelled: Callable[[str], str] = str) -> Any:
        """Return the options from {name: value}; UserError for a name that it does not have, or in another mode.

        values: may be the dataclass of options itself. spelled: how the user wrote an option, for messages.
        """
        if isinstance(values, self.options):
            return values
        if not isinstance(values, Mapping):
            raise UserError(f"options {type(values).__name__}: the sampler {self.name} has {self.options.__name__}")
        for name in values:
            if name not in self.option_names:
                raise self.refusal(name, spelled(name))
        options = from_dict(self.options(), values)
        mode = to_dict(options).get("mode")
        for name in values:
            if self.only_in.get(name, mode) != mode:
                raise UserError(f"{spelled(name)} does not apply to {spelled('mode')} {mode}")
        return options

    def refusal(self, name: str, spelled: str) -> UserError:
        """Return the error for an option that this sampler lacks: which samplers have it, else the nearest name."""
        owners = [owner for owner, other in SAMPLERS.items() if name in (*other.option_names, *other.reads)]
        if not owners:
            return unknown(f"option of the sampler {self.name}", name, self.option_names)
        return UserError(f"{spelled} does not apply to the sampler {self.name} (it belongs to {', '.join(owners)})")

    def entries(self, settings: SamplerSettings) -> dict[str, object]:
        """Return its entries of the protocol record; unless it declares `record`: its name and all its options."""
        if self.record is not None:
            return self.record(settings)
        own = to_dict(settings.options)
        own.pop("mode", None)
        return {**named(settings), **own}


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """How images are made; all of it goes into the protocol record.

    family: the name of a sampler; "" leaves it, and uint8 and the guided channels, to `for_model`.
    options: {name: value} of the sampler's own options, or its dataclass of them, which it is once `family` is set.
    """

    family: str = option("", help="kind of sampler")
    num_steps: int = 50
    options: Any = field(default_factory=dict)
    interpolant: Interpolant = field(default_factory=Interpolant)
    guidance: Guidance = field(default_factory=Guidance)
    balanced: bool = False
    labels: tuple[int, ...] = option((), help="these labels in turn, instead of drawn ones")
    uint8: str = option("", help="float to uint8; default: the sampler's own", choices=("", "floor", "round"))
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise UserError(f"num_steps {self.num_steps}: at least 1 step is needed")
        if self.guidance.cfg_scale < 1:
            raise UserError(f"cfg_scale {self.guidance.cfg_scale}: at least 1, which is no guidance")
        if self.balanced and self.labels:
            raise UserError("balanced labels or given labels: choose one of them")
        if not self.family:
            return
        if self.family not in SAMPLERS.names():
            raise UserError(f"family {self.family!r}: choose {', '.join(SAMPLERS.names())}")
        sampler = SAMPLERS.get(self.family)
        if self.num_steps < sampler.least_steps:
            least = sampler.least_steps
            raise UserError(f"num_steps {self.num_steps}: the sampler {self.family} needs at least {least}")
        object.__setattr__(self, "options", sampler.read_options(self.options))

    def for_model(self, model: DiffusionModel) -> SamplerSettings:
        """Return the settings with what depends on the model filled in; UserError if they cannot be used for it."""
        if model.stub:
            raise UserError(f"this is {model.stub}")
        family = self.family or default_sampler(model)
        sampler = SAMPLERS.get(family)
        if not sampler.applies(model):
            usable = [name for name, other in SAMPLERS.items() if other.applies(model)]
            raise UserError(f"the sampler {family} does not fit this model; choose {', '.join(usable) or 'none'}")
        if wrong := [label for label in self.labels if not 0 <= label < model.num_classes]:
            known = f"labels 0..{model.num_classes - 1}" if model.num_classes else "no labels"
            raise UserError(f"label {wrong[0]}: this model has {known}")
        guidance, channels = self.guidance, sampler.guided_channels
        if (
            guidance.cfg_scale > 1
            and model.conditioning == "class"
            and not (model.has_null_label and model.num_classes)
        ):
            why = NO_NULL_LABEL if model.num_classes else "this model has no classes"
            raise UserError(f"{why}: guidance by {guidance.cfg_scale:g} has nothing to compare with; sample without it")
        few = channels is not None and model.conditioning != "snippet" and model.image_shape[0] > channels
        if guidance.channels is None and few:
            guidance = dataclasses.replace(guidance, channels=channels)
        return dataclasses.replace(self, family=family, uint8=self.uint8 or sampler.uint8, guidance=guidance)

    def draws(self, stream: str, indices: Sequence[int], shape: Sequence[int]) -> Callable[[], Tensor]:
        """Return a function that gives the next standard normal draws (B, *shape), float32 on the CPU.

        Row i depends on the seed, the stream's name and indices[i] alone.
        """
        gens = generators(self.seed, stream, indices)
        return lambda: normal(gens, shape)

    @property
    def sampler(self) -> Sampler:
        """The registered sampler."""
        return SAMPLERS.get(self.family or DEFAULT)

    @property
    def rule(self) -> str:
        """The rule from floats to uint8."""
        return self.uint8 or self.sampler.uint8

    @property
    def label_rule(self) -> str | list[int]:
        """How labels are chosen, as a protocol entry."""
        return list(self.labels) or ("balanced" if self.balanced else "random")

    def record(self) -> dict[str, object]:
        """Return the settings as protocol entries."""
        if not self.family:
            return dataclasses.replace(self, family=DEFAULT).record()
        reads = self.sampler.reads
        entries = {
            "sampler_mode": to_dict(self.options).get("mode", self.family),
            "num_steps": self.num_steps,
            "path_type": self.interpolant.path_type if PATH in reads else None,
            "cfg_scale": self.guidance.cfg_scale,
            "guidance_interval": [self.guidance.low, self.guidance.high] if INTERVAL in reads else None,
            "labels": self.label_rule,
            "uint8": self.rule,
            "sampler_seed": self.seed,
        }
        if self.guidance.channels is not None:
            entries["guided_channels"] = self.guidance.channels
        plugin = SAMPLERS.plugin_of(self.family)
        origin = {} if plugin is None else {"sampler_sha256": plugin.sha256}
        return {**entries, **self.sampler.entries(self), **origin}


Integrate = Callable[[Any, Tensor, Tensor, Sequence[int], SamplerSettings], Tensor]
F = TypeVar("F", bound=Integrate)
SAMPLERS: Registry[Sampler] = Registry("sampler", "repa_eval.sampling.samplers", group="repa_eval.samplers")


def sampler(
    name: str,
    *,
    applies: Callable[[DiffusionModel], bool] = answers_velocity,
    default_for: Callable[[Any], bool] = lambda _model: False,
    **declared: Any,
) -> Callable[[F], F]:
    """Register a sampler; its function is returned unchanged.

    applies: by default every model that answers a velocity. declared: further fields of Sampler.
    """

    def record(function: F) -> F:
        made = Sampler(name=name, integrate=function, applies=applies, default_for=default_for, **declared)
        SAMPLERS.register(name, source=function)(made)
        return function

    return record


def default_sampler(model: DiffusionModel | type[DiffusionModel]) -> str:
    """Return the name of the sampler that a model (or all of its class) is sampled by unless another is chosen."""
    names = [name for name, known in SAMPLERS.items() if known.default_for(model)]
    if len(names) > 1:
        raise UserError(f"the samplers {', '.join(names)} are each the default of this model: choose one by its name")
    return names[0] if names else DEFAULT


def named(settings: SamplerSettings) -> dict[str, object]:
    """Return the entries by which a record names its sampler and the channels that are guided."""
    return {"sampler": settings.family, "guided_channels": settings.guidance.channels or "all"}
