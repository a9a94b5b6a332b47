"""The options of `repa-eval sample`, and the sampler's settings that they mean for a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from repa_eval.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])
NO_INTERVAL = ("mode", "guidance_low", "guidance_high", "path_type")
# options that only some samplers have, and transport's that only one of its modes has
APPLIES = {
    **dict.fromkeys(NO_INTERVAL, ("repa", "joint", "transport")),
    "heun": ("repa", "joint"),
    "cls_cfg_scale": ("joint",),
}
TRANSPORT = {
    "sampling_method": ("ode", "sde"),
    **dict.fromkeys(("timestep_shift", "atol", "rtol"), ("ode",)),
    **dict.fromkeys(("diffusion_form", "diffusion_norm", "last_step", "last_step_size"), ("sde",)),
}
FORMS = ("sigma", "linear", "decreasing", "increasing-decreasing", "constant")
OPTIONS = (
    click.option(
        "--sampler",
        type=click.Choice(["repa", "joint", "transport", "ddpm"]),
        help="default: the model's own: joint for REG, transport for SiT and GMem, ddpm for DiT and U-DiT, else repa",
    ),
    click.option("--mode", type=click.Choice(["ode", "sde"]), default="ode", show_default=True, help="sampler"),
    click.option(
        "--num-steps",
        type=click.IntRange(min=1),
        default=50,
        show_default=True,
        help="steps from noise to data; transport: times, as published",
    ),
    click.option("--heun", is_flag=True, help="Heun instead of Euler steps"),
    click.option(
        "--path-type",
        type=click.Choice(["linear", "cosine"]),
        help="path between noise and data; default: the recorded one, else linear",
    ),
    click.option("--cfg-scale", type=float, default=1.0, show_default=True, help="guidance; 1 = none"),
    click.option("--guidance-low", type=float, default=0.0, show_default=True, help="guided from this t ..."),
    click.option("--guidance-high", type=float, default=1.0, show_default=True, help="... to this t (1 = noise)"),
    click.option(
        "--guided-channels",
        type=click.IntRange(min=1),
        help="guide the first N channels; default: 3 for SiT, DiT and U-DiT, else all",
    ),
    click.option(
        "--cls-cfg-scale",
        type=float,
        default=0.0,
        show_default=True,
        help="REG: guidance of the class token; 0 = it stays conditional",
    ),
    click.option(
        "--sampling-method", help="transport: ode dopri5, euler, midpoint, heun2; sde euler, heun; default: the first"
    ),
    click.option("--timestep-shift", type=float, help="transport, ode: t' = s t / (1 + (s - 1) t); GMem 0.3"),
    click.option("--atol", type=float, help="transport, dopri5: absolute tolerance, 1e-6"),
    click.option("--rtol", type=float, help="transport, dopri5: relative tolerance, 1e-3"),
    click.option(
        "--diffusion-form", type=click.Choice(FORMS), help="transport, sde: noise along t, sigma; GMem linear"
    ),
    click.option("--diffusion-norm", type=float, help="transport, sde: factor of the form, 1"),
    click.option(
        "--last-step",
        type=click.Choice(["Mean", "Euler", "Tweedie"]),
        help="transport, sde: the step without noise, Mean",
    ),
    click.option("--last-step-size", type=float, help="transport, sde: its size, 0.04; GMem 0.004"),
)


def sampling(function: F) -> F:
    """Add the options of all samplers."""
    for decorator in reversed(OPTIONS):
        function = decorator(function)
    return function


def settings_for(model: Any, opened: Any, given: Mapping[str, Any]) -> Any:
    """Return the settings for this model; UserError for an option that its sampler does not have."""
    from repa_eval.config import from_dict
    from repa_eval.diffusion.guidance import Guidance
    from repa_eval.diffusion.interpolant import Interpolant
    from repa_eval.sampling.samplers.transport import Transport
    from repa_eval.sampling.settings import SamplerSettings, family_of, takes_snippets

    family = given["sampler"] or family_of(model)
    _refuse_others(family, given["mode"])
    if given["balanced"] and takes_snippets(model):
        raise UserError("--balanced: this model has no classes; it draws from its memory bank")
    path = from_dict(Interpolant(), opened.option("interpolant") or {})
    if given["path_type"] is not None:
        path = from_dict(path, {"path_type": given["path_type"]})
    guidance = Guidance(
        cfg_scale=given["cfg_scale"],
        low=given["guidance_low"],
        high=given["guidance_high"],
        channels=given["guided_channels"],
    )
    names = ("mode", "num_steps", "heun", "cls_cfg_scale", "balanced", "seed")
    settings = SamplerSettings(
        family=family,
        guidance=guidance,
        interpolant=path,
        transport=Transport(**{name: given[name] for name in TRANSPORT if given[name] is not None}),
        labels=_labels(given["labels"]),
        uint8=given["uint8"] or "",
        **{name: given[name] for name in names},
    )
    return settings.for_model(model)


def _refuse_others(family: str, mode: str) -> None:
    context = click.get_current_context()
    for name in (*APPLIES, *TRANSPORT):
        if context.get_parameter_source(name) is click.core.ParameterSource.DEFAULT:
            continue
        option = "--" + name.replace("_", "-")
        families = APPLIES.get(name, ("transport",))
        if family not in families:
            raise UserError(f"{option} does not apply to the sampler {family} (it belongs to {', '.join(families)})")
        if mode not in TRANSPORT.get(name, (mode,)):
            raise UserError(f"{option} does not apply to --mode {mode}")


def _labels(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"--labels {text!r}: expected numbers joined by commas, for example 3,5") from error


def open_bank(path: Path | None) -> Any:
    """Return the memory bank of a file, checked; None if no file is named."""
    from repa_eval.memory_bank.files import load_bank

    return None if path is None else load_bank(path, what="--bank")
