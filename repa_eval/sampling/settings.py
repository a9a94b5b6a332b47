"""How images are made, and how that is recorded beside every number."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from repa_eval.config import option
from repa_eval.diffusion.conventions import EPSILON, REVERSED
from repa_eval.diffusion.guidance import Guidance
from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.errors import UserError
from repa_eval.sampling.samplers.transport import Transport

# The kinds of sampler, and what each of them can draw from:
FAMILIES = {
    "repa": "REPA's ODE and SDE, for every model that answers a velocity",
    "joint": "REG's, of latent and class token together",
    "transport": "SiT's and GMem's, in their own time",
    "ddpm": "DiT's and U-DiT's, on respaced diffusion steps",
}
UINT8 = {"repa": "floor", "joint": "floor", "transport": "round", "ddpm": "round"}  # what each published code does
GUIDED_CHANNELS = 3  # of a latent's four: DiT's published samplers, and SiT's and U-DiT's after it


def family_of(model: Any) -> str:
    """Return the family whose published sampler is a model's own."""
    if model.native == EPSILON:
        return "ddpm"
    if model.native == REVERSED:
        return "transport"
    return "joint" if model.has_class_token else "repa"


def takes_snippets(model: Any) -> bool:
    """Return whether a model is conditioned on memory snippets (GMem) instead of labels."""
    return model.conditioning == "snippet"


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """How images are made; all of it goes into the protocol record.

    family: a key of FAMILIES; "" leaves it, and uint8 and the guided channels, to `for_model`.
    """

    family: str = option("", help="kind of sampler", choices=("", *FAMILIES))
    mode: str = option("ode", help="sampler", choices=("ode", "sde"))
    num_steps: int = 50
    heun: bool = False
    interpolant: Interpolant = field(default_factory=Interpolant)
    guidance: Guidance = field(default_factory=Guidance)
    cls_cfg_scale: float = option(0.0, help="joint: guidance of the class token; 0 = it stays conditional")
    transport: Transport = field(default_factory=Transport)
    balanced: bool = False
    labels: tuple[int, ...] = option((), help="these labels in turn, instead of drawn ones")
    uint8: str = option("", help="float to uint8; default: the family's own", choices=("", "floor", "round"))
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise UserError(f"num_steps {self.num_steps}: at least 1 step is needed")
        if self.mode not in ("ode", "sde"):
            raise UserError(f"mode {self.mode!r}: choose ode or sde")
        if self.family and self.family not in FAMILIES:
            raise UserError(f"family {self.family!r}: choose {', '.join(FAMILIES)}")
        if self.heun and self.mode != "ode":
            raise UserError("Heun steps belong to the ODE; with mode sde leave them out")
        if self.heun and self.family in ("transport", "ddpm"):
            raise UserError(f"heun does not apply to the sampler {self.family}; transport has sampling_method heun2")
        if self.balanced and self.labels:
            raise UserError("balanced labels or given labels: choose one of them")
        if self.family in ("transport", "ddpm") and self.num_steps < 2:
            raise UserError(f"num_steps {self.num_steps}: the sampler {self.family} needs at least 2")
        if self.family == "transport":
            self.transport.method(self.mode)

    def for_model(self, model: Any) -> SamplerSettings:
        """Return the settings with what depends on the model filled in; UserError if they cannot be used for it."""
        if model.stub:
            raise UserError(f"this is {model.stub}, which generates nothing; take a later checkpoint")
        own = family_of(model)
        family = self.family or own
        # a velocity model can be read in either time; a class token and a noise prediction need their own sampler
        if family != own and not {family, own} <= {"repa", "transport"}:
            usable = ", ".join(name for name in FAMILIES if name == own or {name, own} <= {"repa", "transport"})
            raise UserError(f"the sampler {family} does not fit this model; choose {usable}")
        if wrong := [label for label in self.labels if not 0 <= label < model.num_classes]:
            known = f"labels 0..{model.num_classes - 1}" if model.num_classes else "no labels"
            raise UserError(f"label {wrong[0]}: this model has {known}")
        guidance, by_labels = self.guidance, family in ("transport", "ddpm") and not takes_snippets(model)
        if guidance.channels is None and by_labels and model.config.in_channels > GUIDED_CHANNELS:
            guidance = dataclasses.replace(guidance, channels=GUIDED_CHANNELS)
        return dataclasses.replace(self, family=family, uint8=self.uint8 or UINT8[family], guidance=guidance)

    @property
    def rule(self) -> str:
        """The rule from floats to uint8."""
        return self.uint8 or UINT8[self.family or "repa"]

    @property
    def label_rule(self) -> str | list[int]:
        """How labels are chosen, as a protocol entry."""
        return list(self.labels) or ("balanced" if self.balanced else "random")

    def record(self) -> dict[str, object]:
        """Return the settings as protocol entries.

        Those of REPA's own sampler are a fixed set: more of them would give old numbers another protocol.
        """
        entries = {
            "sampler_mode": self.mode,
            "num_steps": self.num_steps,
            "path_type": self.interpolant.path_type,
            "cfg_scale": self.guidance.cfg_scale,
            "guidance_interval": [self.guidance.low, self.guidance.high],
            "labels": self.label_rule,
            "uint8": self.rule,
            "sampler_seed": self.seed,
        }
        if self.guidance.channels is not None:
            entries["guided_channels"] = self.guidance.channels
        return {**entries, **self._solver()}

    def _solver(self) -> dict[str, object]:
        stepping = "heun" if self.heun else "euler" if self.mode == "ode" else "euler-maruyama, w=2t, last step 0.04"
        if self.family in ("", "repa"):
            return {"solver": stepping}
        entries: dict[str, object] = {"sampler": self.family, "guided_channels": self.guidance.channels or "all"}
        if self.family == "joint":
            nfe = 2 * self.num_steps - 1 if self.heun else self.num_steps
            stepping += " (not of the published code)" if self.mode == "ode" else ""
            return {**entries, "solver": stepping, "nfe": nfe, "cls_cfg_scale": self.cls_cfg_scale}
        if self.family == "transport":
            return {**entries, **self.transport.record(self.mode, self.num_steps)}
        # there are no modes, times or intervals here
        schedule = "ancestral, learned-range variance, linear betas, 1000 steps respaced evenly, no clipping"
        none = {"sampler_mode": "ddpm", "path_type": None, "guidance_interval": None}
        return {**entries, **none, "solver": schedule, "nfe": self.num_steps}
