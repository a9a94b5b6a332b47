"""`timm:NAME`: any network of timm as a teacher, with timm's own preprocessing and its published weights."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import Any

import timm
from timm.data import resolve_model_data_config
from timm.models import get_pretrained_cfg

from repa_eval.errors import Failure, UserError, first_line
from repa_eval.interfaces.teacher import Teacher, teacher
from repa_eval.teachers.shared.preprocessing import WholeImage
from repa_eval.teachers.shared.timm_teacher import VisionTeacher
from repa_eval.teachers.shared.weight_names import published_names
from repa_eval.weight_files.download import fetch
from repa_eval.weight_files.state_dicts import NOTHING, convert, load_strictly, read_state

MODES = ("bicubic", "bilinear", "nearest")


@teacher("timm:NAME")
def timm_network(name: str, weights: Path | None) -> Teacher:
    """Any network of timm by its name: its patch tokens, or its last feature map row by row."""
    wanted = name.partition(":")[2]
    if not timm.is_model(wanted):
        near = ", ".join(difflib.get_close_matches(wanted.partition(".")[0], timm.list_models(), n=3))
        raise UserError(f"timm has no network {wanted!r}" + (f"; near it: {near}" if near else ""))
    try:
        network = timm.create_model(wanted, num_classes=0)
    except RuntimeError as error:  # a name of weights that does not exist
        raise UserError(f"teacher {name}: {first_line(error)}") from error
    path = _published(name, wanted) if weights is None else weights
    owner = f"teacher {name}"
    state = read_state(path, owner=owner, names=network.state_dict())
    state = published_names(state, owner=owner, path=path)
    # a module of timm's that knows other names than its own calls the rule so
    rule = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if rule is not None:
        state = convert(rule, state, network, owner=owner, path=path)
    load_strictly(network, state, drop=_heads(network.pretrained_cfg), owner=owner, path=path)
    config = resolve_model_data_config(network)
    pixels = WholeImage(
        mean=config["mean"],
        std=config["std"],
        size=config["input_size"][-2:],
        mode=config["interpolation"] if config["interpolation"] in MODES else "bicubic",
    )
    return VisionTeacher(name, network, pixels)


def _published(name: str, wanted: str) -> Path:
    try:
        return fetch(get_pretrained_cfg(wanted))
    except OSError as error:
        raise Failure(
            f"teacher {name}: its weights could not be downloaded ({first_line(error)}); get model.safetensors of "
            f"timm/{wanted} and give it: --teacher-weights model.safetensors"
        ) from error


def _heads(config: Any) -> str:
    """Return the pattern of the classifiers' names: they are not built."""
    heads = config.get("classifier") or ()
    return "|".join(rf"{head}\." for head in ([heads] if isinstance(heads, str) else heads)) or NOTHING
