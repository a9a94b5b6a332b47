"""Which published recipe a command line without --recipe means: that of its method, in the size that it names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from repa_eval.interfaces.architecture import MODELS
from repa_eval.interfaces.images import DATA
from repa_eval.interfaces.method import METHODS
from repa_eval.train.recipe import builtin_recipes, read_recipe

EMBEDDED = "digits"  # begins the names of the data, models and recipes that ship with the package
FOLDER = "imagenet/"
# the repositories of these systems call their networks as REPA's: what stands for "SiT-" here
NETWORKS = {"reg": "SiT-REG-", "erw": "SiT-ERW-", "urepa": "SiT-down-"}


def model_of(method: str | None, model: str) -> str:
    """Return our name of a network that a system's own trainer calls `model`, such as SiT-REG-B/2 for REG's SiT-B/2."""
    prefix = NETWORKS.get(method or "", "SiT-")
    plain = model.startswith("SiT-") and not model.startswith(tuple(NETWORKS.values()))
    return prefix + model.removeprefix("SiT-") if plain and f"-{EMBEDDED}" not in model else model


def wants_published(overrides: Mapping[str, Any], *, folder: bool) -> bool:
    """Return whether somebody who names no recipe names a model or data of another scale than the embedded ones.

    folder: the data were named as a folder, whatever the name.
    """
    model, data = (str(overrides.get(key, "")) for key in ("model", "data"))
    if model or "architecture.input_size" in overrides:
        return f"-{EMBEDDED}" not in model and not _of_plugin(model)
    place = data.partition(":")[2] or data
    named = data.partition(":")[0] in DATA.names() and ":" not in data
    return bool(data) and not named and (folder or "/" in place or Path(place).exists())


def _of_plugin(model: str) -> bool:
    """Return whether a size is one of a plug-in's architecture, for which nothing was published."""
    return any(model in each.presets and MODELS.plugin_of(name) is not None for name, each in MODELS.items())


def published_recipe(method: str, overrides: Mapping[str, Any]) -> str | None:
    """Return the name of the published recipe of a method, that of the model and the size of latents if there is one.

    None for a method without any.
    """
    trees = {name: read_recipe(name) for name in builtin_recipes() if name.startswith(FOLDER)}
    of_method = {name: tree for name, tree in trees.items() if tree.get("method") == method}
    wanted = {"model": overrides.get("model"), "side": overrides.get("architecture.input_size", 32)}

    def misfits(name: str) -> tuple[bool, bool, int]:
        tree = of_method[name]
        side = tree.get("architecture", {}).get("input_size")
        other_model = tree["model"] != wanted["model"] if wanted["model"] else "XL" not in tree["model"]
        return other_model, side != wanted["side"], len(name)

    return min(of_method, key=misfits) if of_method else None


def recipe_for(method: str | None, overrides: Mapping[str, Any], *, folder: bool = False) -> str:
    """Return the recipe of a command line that names none: a published one where it is wanted, else an embedded one.

    folder: see `wants_published`.
    """
    chosen = method or "repa"
    own = METHODS.plugin_of(chosen) is not None  # a plug-in's method, which has no published recipe: REPA's settings
    wanted = wants_published({} if own and not folder and "model" not in overrides else overrides, folder=folder)
    published = published_recipe("repa" if own else chosen, overrides) if wanted else None
    embedded = f"{EMBEDDED}-{chosen}"
    return published or (embedded if embedded in builtin_recipes() else f"{EMBEDDED}-repa")
