"""What the names of files of samples say: the step, and the settings in the names of the official scripts.

REPA, REG, HASTE and SiT write SiT-XL-2-0400000-size-256-vae-ema-cfg-1.8-seed-0-sde.npz, SiT's older script
SiT-XL-2-0400000-cfg-1.5-64-ODE-250-dopri5.npz, DiT the same without a mode.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

FILE_NAME = "file name"
_STEP = re.compile(r"(?<!\d)\d{7}(?!\d)")
_SCALE = re.compile(r"-cfg-(\d+(?:\.\d+)?)(?=-|$)")
_SEED = re.compile(r"-seed-(\d{1,18})(?=-|$)")
_MODE = re.compile(r"-(ode|sde)(?=-|$)", re.IGNORECASE)


def step_in(name: str) -> int | None:
    """Return the step in a name that holds one number of seven digits; None for none or several."""
    steps = set(_STEP.findall(name))
    return int(steps.pop()) if len(steps) == 1 else None


def settings_in(path: Path) -> dict[str, Any]:
    """Return what the name of samples says, as entries of a record: the step, guidance, seed and mode."""
    name = path.stem if path.suffix.lower() in (".npz", ".zip") else path.name
    settings: dict[str, Any] = {}
    if found := _SCALE.search(name):
        settings["cfg_scale"] = float(found[1])
    if found := _SEED.search(name):
        settings["sampler_seed"] = int(found[1])
    if found := _MODE.search(name):
        settings["sampler_mode"] = found[1].lower()
    if settings:
        settings["settings_from"] = FILE_NAME
    if (step := step_in(name)) is not None:
        settings |= {"step": step, "step_from": FILE_NAME}
    return settings
