"""A checkpoint as the official trainers write it: {model, ema, opt, args, steps}, for their scripts to read."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from repa_eval.checkpoints.shared.networks import preset_of
from repa_eval.config import flatten
from repa_eval.errors import UserError
from repa_eval.runtime.files import atomic_file
from repa_eval.train.official_flags import FLAGS
from repa_eval.train.published import NETWORKS
from repa_eval.train.state import load_checkpoint, save_into

FAMILY = "SiT-"  # the networks of REPA, HASTE, REG and ERW, whose trainers share the form
NAMELESS = ("--epochs", "--legacy", "--resolution", "--model")  # flags whose value is no field's


def export_official(checkpoint: Path) -> Path:
    """Write an official-NNNNNNN.pt next to a checkpoint of repa-train, and return it; UserError for other systems."""
    content = official_content(checkpoint)
    path = checkpoint.with_name(f"official-{checkpoint.name}")
    with atomic_file(path) as file:
        save_into(file, content)
    return path


def official_content(checkpoint: Path) -> dict[str, Any]:
    """Return what an official trainer would have saved of the run; see `export_official`."""
    saved = load_checkpoint(checkpoint)
    recipe = saved["recipe"]
    if not str(recipe["model"]).startswith(FAMILY) or recipe["method"] == "urepa" or saved["method"]:
        raise UserError(
            f"--export official: no official script reads {recipe['model']} of method {recipe['method']}; "
            "repa-eval convert writes safetensors"
        )
    return {
        "model": saved["model"],
        "ema": saved["ema"],
        "opt": _official_optimiser(saved["opt"], recipe),
        "args": argparse.Namespace(**official_arguments(recipe)),
        "steps": saved["step"],
    }


def official_arguments(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the command line of a run as the official parsers would have read it."""
    leaves = flatten({key: recipe[key] for key in recipe if key != "plugins"})
    bare = {key.rpartition(".")[2]: value for key, value in reversed(leaves.items())}
    named = {
        name.strip("-").replace("-", "_"): bare[key]
        for name, flag in FLAGS.items()
        if name not in NAMELESS and (key := flag.key.rpartition(".")[2]) in bare
    }
    model = str(recipe["model"])
    for prefix in NETWORKS.values():
        model = model.replace(prefix, FAMILY)
    # no shape tells the heads of a width that was never published
    own = {"num_heads": bare["num_heads"], "resolution": 8 * bare["input_size"]}
    return {**named, **own, "model": model, "legacy": False}


def _official_optimiser(saved: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return AdamW's state over all parameters in their order: the official optimisers hold the frozen ones too."""
    architecture, config = preset_of(recipe["model"], recipe["architecture"])
    with torch.device("meta"):
        parameters = list(architecture.build(config).parameters())
    places = [place for place, parameter in enumerate(parameters) if parameter.requires_grad]
    [group] = saved["param_groups"]
    return {
        "state": {places[number]: entry for number, entry in saved["state"].items()},
        "param_groups": [{**group, "params": list(range(len(parameters)))}],
    }
