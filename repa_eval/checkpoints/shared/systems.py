"""Which systems a network can belong to, and in which convention it was trained: keys, arguments, config decide."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from repa_eval.diffusion.conventions import EPSILON, REVERSED, VELOCITY
from repa_eval.errors import unknown

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Reading:
    """One way to understand a network.

    fits: whether a config can be of this system. told: whether the trainer's own arguments say that it is.
    only_told: not considered unless they say so (its weights look like another system's).
    """

    system: str
    architecture: str
    native: str = VELOCITY
    fits: Callable[[Any], bool] = lambda config: True
    told: Callable[[Options], bool] = lambda options: False
    only_told: bool = False

    def published(self, size: str) -> str:
        """Return the name that the system's own trainer gives a size: REG and ERW call their networks SiT too."""
        return size.replace("SiT-REG", "SiT").replace("SiT-ERW", "SiT").replace("LightningDiT-class", "LightningDiT")


def _sigma(config: Any) -> bool:
    return bool(config.learn_sigma)


def _plain(config: Any) -> bool:
    return not config.learn_sigma


def _has(*keys: str) -> Callable[[Options], bool]:
    return lambda options: any(key in options for key in keys)


def _model_starts(prefix: str) -> Callable[[Options], bool]:
    return lambda options: str(options.get("model", "")).startswith(prefix)


def _repa(options: Options) -> bool:
    others = {"attn_coeff", "early_stop_point", "l2r_depth", "warmup_steps", "cls"}
    return "proj_coeff" in options and not others & set(options)


_haste, _erw = _has("attn_coeff", "early_stop_point"), _has("l2r_depth", "warmup_steps")

READINGS = (
    Reading("REPA", "SiT", fits=_plain, told=_repa),
    Reading("HASTE", "SiT", fits=_plain, told=_haste),
    Reading("ERW", "SiT", fits=_plain, told=_erw, only_told=True),
    Reading("SiT", "SiT", REVERSED, fits=_plain, told=_has("sample_eps", "train_eps"), only_told=True),
    Reading("SiT", "SiT", REVERSED, fits=_sigma, told=_model_starts("SiT")),
    Reading("DiT", "DiT", EPSILON, told=_model_starts("DiT")),
    Reading("REG", "SiT-REG"),
    Reading("ERW", "SiT-ERW"),
    Reading("GMem", "LightningDiT", REVERSED),
    Reading("LightningDiT", "LightningDiT-class", REVERSED),
    Reading("U-REPA", "SiT-down"),
    Reading("U-DiT", "U-DiT", EPSILON),
    Reading("REPA", "MMDiT", told=_repa),
    Reading("HASTE", "MMDiT", told=_haste),
    *(Reading("RePaViT", name) for name in ("RePaViT", "RePaSwin", "RePaMLPMixer", "RePaPoolFormer")),
)


def readings_of(configs: Mapping[str, Any], options: Options, wanted: str | None) -> list[Reading]:
    """Return the readings of a network that can be each of `configs` (architecture -> config), the likeliest first.

    options: the arguments in the file; where they tell a system, it is the only one. wanted: the user's choice.
    """
    possible = [
        reading
        for reading in READINGS
        if reading.architecture in configs and reading.fits(configs[reading.architecture])
    ]
    if wanted is not None:
        names = {reading.system.lower(): reading for reading in reversed(possible)}
        if wanted.lower() not in names:
            raise unknown("system", wanted, [reading.system for reading in possible])
        return [names[wanted.lower()]]
    told = [reading for reading in possible if reading.told(options)]
    return told or [reading for reading in possible if not reading.only_told]
