"""The options of `repa-eval sample`, and the sampler's settings that they mean for a model."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click

from repa_eval.config import parse_overrides
from repa_eval.console.numbers import COUNT, Real
from repa_eval.console.option_groups import flag, given, option_group
from repa_eval.errors import UserError

FORMS = ("sigma", "linear", "decreasing", "increasing-decreasing", "constant")


@dataclass(frozen=True, kw_only=True)
class SamplerFlags:
    """Flags for the options that the built-in samplers declare under the same names."""

    mode: str = flag(
        "--mode", type=click.Choice(["ode", "sde"]), default="ode", help="ode: deterministic; sde: noise at every step"
    )
    heun: bool = flag("--heun/--no-heun", default=False, help="Heun instead of Euler steps")
    cls_cfg_scale: float = flag(
        "--cls-cfg-scale", type=Real(0), default=0.0, help="REG: guidance of the class token; 0 = it stays conditional"
    )
    sampling_method: str | None = flag(
        "--sampling-method", help="transport: ode dopri5, euler, midpoint, heun2; sde euler, heun; default: the first"
    )
    timestep_shift: float | None = flag(
        "--timestep-shift", type=Real(0, above=True), help="transport, ode: t' = s t / (1 + (s - 1) t); GMem 0.3"
    )
    atol: float | None = flag("--atol", type=Real(0, above=True), help="transport, dopri5: absolute tolerance, 1e-6")
    rtol: float | None = flag("--rtol", type=Real(0, above=True), help="transport, dopri5: relative tolerance, 1e-3")
    diffusion_form: str | None = flag(
        "--diffusion-form", type=click.Choice(FORMS), help="transport, sde: noise along t, sigma; GMem linear"
    )
    diffusion_norm: float | None = flag("--diffusion-norm", type=Real(0), help="transport, sde: factor of the form, 1")
    last_step: str | None = flag(
        "--last-step",
        type=click.Choice(["Mean", "Euler", "Tweedie"]),
        help="transport, sde: the step without noise, Mean",
    )
    last_step_size: float | None = flag(
        "--last-step-size", type=Real(0, 1, above=True), help="transport, sde: its size, 0.04; GMem 0.004"
    )

    def as_given(self) -> dict[str, Any]:
        """Return the values of the flags that were given to the running command."""
        return {member.name: getattr(self, member.name) for member in fields(self) if given(member.name)}


@dataclass(frozen=True, kw_only=True)
class SamplerOptions:
    """Which sampler, and what all of them understand."""

    sampler: str | None = flag(
        "--sampler",
        metavar="NAME",
        help="one of `repa-eval list samplers`; default: joint for REG, transport for SiT and GMem, ddpm for DiT and "
        "U-DiT, else repa",
    )
    sampler_option: tuple[str, ...] = flag(
        "--sampler-option",
        multiple=True,
        metavar="KEY=VALUE",
        help="an option that the sampler declares, such as shift=2 with --sampler flow",
    )
    num_steps: int = flag(
        "--num-steps",
        "--num-sampling-steps",
        type=COUNT,
        default=50,
        help="steps from noise to data; transport counts time points, as published",
    )
    path_type: str | None = flag(
        "--path-type",
        type=click.Choice(["linear", "cosine"]),
        help="path between noise and data; default: the recorded one, else linear",
    )
    cfg_scale: float = flag("--cfg-scale", type=Real(1), default=1.0, help="guidance; 1 = none")
    guidance_low: float = flag(
        "--guidance-low", type=Real(0, 1), default=0.0, help="guide only from this t on (0 = data) ..."
    )
    guidance_high: float = flag(
        "--guidance-high", type=Real(0, 1), default=1.0, help="... up to this t (1 = noise), both included"
    )
    guided_channels: int | None = flag(
        "--guided-channels",
        type=COUNT,
        help="guide the first N channels; default: 3 for SiT, DiT and U-DiT, else all",
    )
    balanced: bool = flag("--balanced", is_flag=True, help="equally many images of every class; default: random labels")
    labels: str | None = flag("--labels", metavar="N[,N]", help="use these labels in turn")
    uint8: str | None = flag(
        "--uint8",
        type=click.Choice(["floor", "round"]),
        help="rounding to uint8; default: as published (repa and joint floor, the others round)",
    )

    def label_numbers(self) -> tuple[int, ...]:
        """Return the labels as numbers; UserError where they are none."""
        if self.labels is None:
            return ()
        try:
            return tuple(int(part) for part in self.labels.split(","))
        except ValueError as error:
            raise UserError(f"--labels {self.labels!r}: expected numbers joined by commas, for example 3,5") from error


sampler_flags = option_group("flags", SamplerFlags)
sampler_options = option_group("options", SamplerOptions)


def settings_for(model: Any, opened: Any, options: SamplerOptions, flags: SamplerFlags, seed: int) -> Any:
    """Return the settings for this model; UserError for an option that its sampler does not have."""
    from repa_eval.config import from_dict
    from repa_eval.diffusion.guidance import Guidance
    from repa_eval.diffusion.interpolant import Interpolant
    from repa_eval.interfaces.sampler import SAMPLERS, SamplerSettings, default_sampler

    sampler = SAMPLERS.get(options.sampler or default_sampler(model))
    for name, setting in (("path_type", "path"), ("guidance_low", "interval"), ("guidance_high", "interval")):
        if given(name) and setting not in sampler.reads:
            raise sampler.refusal(setting, _spelled(name))
    by_flag, by_name = flags.as_given(), parse_overrides(options.sampler_option)
    for name in by_flag.keys() & by_name.keys():
        raise UserError(f"--sampler-option {name}: {_spelled(name)} says the same; leave one of them out")
    own = sampler.read_options({**by_flag, **by_name}, spelled=lambda name: name if name in by_name else _spelled(name))
    if options.balanced and model.conditioning == "snippet":
        raise UserError("--balanced: this model has no classes; it draws from its memory bank")
    path = from_dict(Interpolant(), opened.option("interpolant") or {})
    settings = SamplerSettings(
        family=sampler.name,
        num_steps=options.num_steps,
        options=own,
        interpolant=path if options.path_type is None else from_dict(path, {"path_type": options.path_type}),
        guidance=Guidance(
            cfg_scale=options.cfg_scale,
            low=options.guidance_low,
            high=options.guidance_high,
            channels=options.guided_channels,
        ),
        balanced=options.balanced,
        labels=options.label_numbers(),
        uint8=options.uint8 or "",
        seed=seed,
    )
    return settings.for_model(model)


def _spelled(name: str) -> str:
    return "--" + name.replace("_", "-")


def open_bank(path: Path | None) -> Any:
    """Return the memory bank of a file, checked; None if no file is named."""
    from repa_eval.memory_bank.files import load_bank

    return None if path is None else load_bank(path, what="--bank")
