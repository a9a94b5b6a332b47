"""The teachers of the REPA trainer by their official names, "family-vit-size", built as timm networks.

Facts of each, from REPA (arXiv 2410.06940) and its trainer's `load_encoders`: one line of FAMILIES.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from timm.models import get_pretrained_cfg
from timm.models.vision_transformer import checkpoint_filter_fn

from repa_eval.errors import Failure, first_line
from repa_eval.interfaces.pixel_statistics import CLIP_MEAN, CLIP_STD
from repa_eval.interfaces.teacher import Builder, Teacher, teacher
from repa_eval.teachers.shared.preprocessing import OfficialPixels
from repa_eval.teachers.shared.timm_teacher import VisionTeacher
from repa_eval.weight_files.download import fetch
from repa_eval.weight_files.state_dicts import State, convert, load_strictly, read_state

SIZES = {"s": "small", "b": "base", "l": "large", "L": "large", "h": "huge", "g": "giant"}
UNUSED = r"(head|fc)\.|decoder_"  # classifiers and projectors of the published files, MAE's decoder
TABLES = ("pos_embed", "visual.positional_embedding")  # ([1,] rows, D), rows = grid^2 or grid^2 + 1
KERNELS = ("patch_embed.proj.weight", "visual.conv1.weight")  # (D, 3, patch, patch)


@dataclass(frozen=True)
class Family:
    """What distinguishes a family.

    title: for people. letters: its sizes. patch: side of a patch. network: timm's name with {} for the size; what
    follows the dot names the published weights, which are downloaded where no file is given. pixels: preprocessing.
    last_norm: tokens are taken after the last norm. file: the official file with {} for the letter, where timm does
    not know it. arguments: by letter, what timm's architecture is built with.
    """

    title: str
    letters: str
    patch: int
    network: str
    pixels: OfficialPixels = OfficialPixels()
    last_norm: bool = True
    file: str = ""
    arguments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


DINOV2 = OfficialPixels(side=224, resolutions=(256, 512))
CLIP = OfficialPixels(mean=CLIP_MEAN, std=CLIP_STD, side=224, resize_first=True)
JEPA = OfficialPixels(side=224)
MOCO = {"s": {"num_heads": 12}}  # MoCo v3 has a ViT-S of its own; timm's has 6 heads
FAMILIES = {
    "dinov2": Family("DINOv2", "sblg", 14, "vit_{}_patch14_dinov2.lvd142m", DINOV2),
    "dinov2reg": Family("DINOv2 with registers", "sblg", 14, "vit_{}_patch14_reg4_dinov2.lvd142m", DINOV2),
    "dinov1": Family("DINO", "sb", 16, "vit_{}_patch16_224.dino"),
    "mocov3": Family("MoCo v3", "sbl", 16, "vit_{}_patch16_224", file="vit-{}-300ep.pth.tar", arguments=MOCO),
    "mae": Family("MAE", "bl", 16, "vit_{}_patch16_224.mae", last_norm=False),
    "clip": Family("CLIP", "L", 14, "vit_{}_patch14_clip_quickgelu_224.openai", CLIP, False, "ViT-{}-14.pt"),
    "jepa": Family("I-JEPA", "h", 14, "vit_{}_patch14_gap_224.in1k_ijepa", JEPA),
}


def assemble(name: str, family: Family, letter: str, state: State, path: Path) -> VisionTeacher:
    """Return the teacher with the weights of `state` under their official names or timm's; path: for messages."""
    kernel = next((state[key] for key in KERNELS if key in state), None)
    if kernel is not None and kernel.ndim == 4 and kernel.shape[-1] != family.patch:
        # timm would resample it without a word
        given, wanted = (f"{side}x{side}" for side in (kernel.shape[-1], family.patch))
        raise Failure(f"teacher {name} has patches of {wanted}, those of {path} are {given}")
    # Built for the grid of the file's own table: the table is resampled once, from there to what the images need.
    rows = next((state[key].shape[-2] for key in TABLES if key in state and state[key].ndim >= 2), 256)
    network: Any = timm.create_model(
        family.network.format(SIZES[letter]).partition(".")[0],
        num_classes=0,
        img_size=math.isqrt(rows) * family.patch,
        weight_init="skip",
        **family.arguments.get(letter, {}),
    )
    state = convert(checkpoint_filter_fn, state, network, owner=f"teacher {name}", path=path)
    load_strictly(network, state, drop=UNUSED, owner=f"teacher {name}", path=path)
    return VisionTeacher(name, network, family.pixels, last_norm=family.last_norm)


def _builder(prefix: str, letter: str) -> Builder:
    def build(name: str, weights: Path | None) -> Teacher:
        family = FAMILIES[prefix]
        path = _published(name, family, letter) if weights is None else weights
        return assemble(name, family, letter, read_state(path, owner=f"teacher {name}"), path)

    network = FAMILIES[prefix].network.format(SIZES[letter]).partition(".")[0]
    build.__doc__ = f"{FAMILIES[prefix].title}, timm's {network}."
    return build


def _published(name: str, family: Family, letter: str) -> Path:
    """Return the downloaded file; Failure that names the official one."""
    network = family.network.format(SIZES[letter])
    source: Any = get_pretrained_cfg(network) if "." in network else None
    try:
        return fetch(source)
    except OSError as error:
        file = family.file.format(letter) or source.url.rpartition("/")[2]
        raise Failure(
            f"teacher {name}: its weights could not be downloaded ({first_line(error)}); get the official file {file} "
            f"and give it: --teacher-weights {file}"
        ) from error


for _prefix, _family in FAMILIES.items():
    for _letter in _family.letters:
        teacher(f"{_prefix}-vit-{_letter}")(_builder(_prefix, _letter))
