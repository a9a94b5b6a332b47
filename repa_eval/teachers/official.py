"""The teachers of the REPA and iREPA trainers by their official names, "family-vit-size", built as timm networks.

Facts of each, from REPA (arXiv 2410.06940) and its trainer's `load_encoders`, and from iREPA (arXiv 2512.10794): one
line of FAMILIES. Means and deviations are those that the encoder was trained with: iREPA gives SigLIP 2 ImageNet's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import timm
from timm.layers import SwiGLUPacked
from timm.models import get_pretrained_cfg
from timm.models.eva import Eva
from timm.models.eva import checkpoint_filter_fn as eva_rule
from timm.models.vision_transformer import checkpoint_filter_fn

from repa_eval.errors import Failure, first_line
from repa_eval.interfaces.pixel_statistics import CLIP_MEAN, CLIP_STD, HALF
from repa_eval.interfaces.teacher import Builder, Teacher, teacher
from repa_eval.teachers.shared.preprocessing import OfficialPixels
from repa_eval.teachers.shared.timm_teacher import VisionTeacher
from repa_eval.teachers.shared.weight_names import published_names
from repa_eval.weight_files.download import fetch
from repa_eval.weight_files.state_dicts import State, convert, load_strictly, read_state

# letters, and the words for them in timm's names
SIZES = {"s": "small", "b": "base", "l": "large", "L": "large", "h": "huge", "g": "giant", "so400m": "so400m"}
UNUSED = (
    r"(head|fc)\.|decoder_|attn_pool\."  # classifiers and projectors of the published files, MAE's decoder, poolers
)
TABLES = ("pos_embed", "visual.positional_embedding")  # ([1,] rows, D), rows = grid^2 or grid^2 + 1
KERNELS = ("patch_embed.proj.weight", "visual.conv1.weight", "conv1.weight")  # (D, 3, patch, patch)
GRID = 16  # patches a side at 256 px, those of the student's latents

Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """What distinguishes a family.

    title: for people. letters: its sizes. patch: side of a patch. network: timm's name with {} for the size; what
    follows the dot names the published weights, which are downloaded where no file is given. pixels: preprocessing.
    last_norm: tokens are taken after the last norm. file: the official file with {} for the letter, where timm does
    not know it. arguments: by letter, what timm's architecture is built with; reading: what the file tells of it.
    networks: by letter, timm's names that do not follow from `network`; patch and side of the images follow from them.
    server: where the official file lies, where timm does not know it.
    """

    title: str
    letters: Sequence[str]
    patch: int
    network: str
    pixels: OfficialPixels = OfficialPixels()
    last_norm: bool = True
    file: str = ""
    arguments: Mapping[str, Arguments] = field(default_factory=dict)
    reading: Callable[[State], Arguments] = lambda state: {}
    networks: Mapping[str, str] = field(default_factory=dict)
    server: str = ""

    def of(self, letter: str) -> Family:
        """Return the family with network, patch and preprocessing of one size."""
        network = self.networks.get(letter)
        if network is None:
            return replace(self, network=self.network.format(SIZES.get(letter, letter)), networks={})
        side = re.search(r"patch(\d+)", network)
        assert side is not None
        patch = int(side[1])
        # an encoder with patches of 16 reads images of 256 px as they are, one with patches of 14 at 224 px
        pixels = replace(self.pixels, side=None if patch == GRID else GRID * patch)
        return replace(self, network=network, networks={}, patch=patch, pixels=pixels)

    @property
    def architecture(self) -> str:
        """timm's name of the network without that of its weights."""
        return self.network.partition(".")[0]


def _biases(state: State) -> Arguments:
    """Return whether DINOv3's queries and values have biases: where all are 0, timm's files lack them."""
    return {"qkv_bias": any(name.endswith(("q_bias", "qkv.bias")) for name in state)}


def _feed_forward(state: State) -> Arguments:
    """Return the feed-forward part of a Web-SSL network: SwiGLU as wide as in the file, or an MLP."""
    gated = state.get("blocks.0.mlp.w12.weight")
    if gated is None:
        return {}
    # a little more than the ratio: timm rounds the product down
    return {"mlp_layer": SwiGLUPacked, "mlp_ratio": (gated.shape[0] + 0.5) / gated.shape[1]}


def _webssl(width: int, depth: int, heads: int) -> Arguments:
    return {"embed_dim": width, "depth": depth, "num_heads": heads}


DINOV2 = OfficialPixels(side=224, resolutions=(256, 512))
DINOV3 = OfficialPixels(resolutions=(256, 512))
CLIP = OfficialPixels(mean=CLIP_MEAN, std=CLIP_STD, side=224, resize_first=True)
JEPA = OfficialPixels(side=224)
SIGNED = OfficialPixels(mean=HALF, std=HALF, resize_first=True)  # SigLIP 2 and PE read [-1, 1], not ImageNet's scale
MOCO = {"s": {"num_heads": 12}}  # MoCo v3 has a ViT-S of its own; timm's has 6 heads
WEBSSL = {
    "dino300m_full2b_224": _webssl(1024, 24, 16),
    "dino1b_full2b_224": _webssl(1536, 40, 24),
    "dino2b_full2b_224": _webssl(2688, 24, 21),
    "dino3b_full2b_224": _webssl(3072, 26, 24),
    "dino5b_full2b_224": _webssl(3584, 32, 28),
    "dino7b_full8b_224": _webssl(4096, 32, 32),
}
DINOV3_NETWORKS = {
    "s16": "vit_small_patch16_dinov3.lvd1689m",
    "b16": "vit_base_patch16_dinov3.lvd1689m",
    "l16": "vit_large_patch16_dinov3.lvd1689m",
    "h16plus": "vit_huge_plus_patch16_dinov3.lvd1689m",
    "7b16": "vit_7b_patch16_dinov3.lvd1689m",
}
SIGLIP2_NETWORKS = {
    letter: f"vit_{size}_patch16_siglip_256.v2_webli"
    for letter, size in {"b": "base", "l": "large", "so400m": "so400m", "g": "giantopt"}.items()
}
PE_NETWORKS = {
    "pe": {"b": "core_base_patch16_224", "l": "core_large_patch14_336", "g": "core_gigantic_patch14_448"},
    "langpe": {"l": "lang_large_patch14_448", "g": "lang_gigantic_patch14_448"},
    "spatialpe": {
        "b": "spatial_base_patch16_512",
        "l": "spatial_large_patch14_448",
        "g": "spatial_gigantic_patch14_448",
    },
}
PE_TITLES = {"pe": "Perception Encoder, core", "langpe": "PE, language", "spatialpe": "PE, spatial"}


def _perception_encoder(prefix: str) -> Family:
    networks = {letter: f"vit_pe_{name}.fb" for letter, name in PE_NETWORKS[prefix].items()}
    return Family(PE_TITLES[prefix], tuple(networks), 0, "", SIGNED, networks=networks)


FAMILIES = {
    "dinov2": Family("DINOv2", "sblg", 14, "vit_{}_patch14_dinov2.lvd142m", DINOV2),
    "dinov2reg": Family("DINOv2 with registers", "sblg", 14, "vit_{}_patch14_reg4_dinov2.lvd142m", DINOV2),
    "dinov1": Family("DINO", "sb", 16, "vit_{}_patch16_224.dino"),
    "mocov3": Family("MoCo v3", "sbl", 16, "vit_{}_patch16_224", file="vit-{}-300ep.pth.tar", arguments=MOCO),
    "mae": Family("MAE", "bl", 16, "vit_{}_patch16_224.mae", last_norm=False),
    "clip": Family("CLIP", "L", 14, "vit_{}_patch14_clip_quickgelu_224.openai", CLIP, False, "ViT-{}-14.pt"),
    "jepa": Family("I-JEPA", "h", 14, "vit_{}_patch14_gap_224.in1k_ijepa", JEPA),
    "dinov3": Family(
        "DINOv3", tuple(DINOV3_NETWORKS), 16, "", DINOV3, networks=DINOV3_NETWORKS, reading=_biases
    ),
    "siglip2": Family("SigLIP 2", tuple(SIGLIP2_NETWORKS), 16, "", SIGNED, networks=SIGLIP2_NETWORKS),
    **{prefix: _perception_encoder(prefix) for prefix in PE_NETWORKS},
    "webssl": Family(
        "Web-SSL DINO", tuple(WEBSSL), 14, "vit_large_patch14_dinov2", JEPA, file="webssl_{}.pth", arguments=WEBSSL,
        reading=_feed_forward, server="https://dl.fbaipublicfiles.com/webssl/",
    ),
}  # fmt: skip


def assemble(name: str, family: Family, letter: str, state: State, path: Path) -> VisionTeacher:
    """Return the teacher with the weights of `state` under published names or timm's; path: for messages."""
    family, state = family.of(letter), published_names(state, owner=f"teacher {name}", path=path)
    kernel = next((state[key] for key in KERNELS if key in state), None)
    if kernel is not None and kernel.ndim == 4 and kernel.shape[-1] != family.patch:
        # timm would resample it without a word
        given, wanted = (f"{side}x{side}" for side in (kernel.shape[-1], family.patch))
        raise Failure(f"teacher {name} has patches of {wanted}, those of {path} are {given}")
    network = network_of(family, letter, state)
    if isinstance(network, Eva):
        # PE's own code resamples its table so, and counts the rotary positions from the grid that it is given.
        # Twice: the first time timm's rule takes PE's own names, and leaves the table as it is
        for _ in range(2):
            state = convert(
                eva_rule, state, network, owner=f"teacher {name}", path=path, interpolation="bilinear", antialias=False
            )
    else:
        state = convert(checkpoint_filter_fn, state, network, owner=f"teacher {name}", path=path)
    load_strictly(network, state, drop=UNUSED, owner=f"teacher {name}", path=path)
    return VisionTeacher(name, network, family.pixels, last_norm=family.last_norm)


def network_of(family: Family, letter: str, state: State) -> Any:
    """Return timm's network without weights."""
    arguments = {**family.arguments.get(letter, {}), **family.reading(state)}
    if "vit_pe_" in family.architecture:
        arguments |= {"img_size": GRID * family.patch, "ref_feat_shape": (GRID, GRID)}
    elif "dinov3" not in family.architecture:
        # Built for the grid of the file's own table: the table is resampled once, from there to what the images need.
        rows = next((state[key].shape[-2] for key in TABLES if key in state and state[key].ndim >= 2), GRID**2)
        arguments |= {"img_size": math.isqrt(rows) * family.patch, "weight_init": "skip"}
    if "siglip" in family.architecture or "vit_pe_" in family.architecture:
        arguments |= {"global_pool": ""}  # without the attention that pools the tokens
    return timm.create_model(family.architecture, num_classes=0, **arguments)


def _builder(prefix: str, letter: str) -> Builder:
    def build(name: str, weights: Path | None) -> Teacher:
        family = FAMILIES[prefix]
        path = _published(name, family.of(letter), letter) if weights is None else weights
        state = read_state(path, owner=f"teacher {name}", names=KERNELS)
        return assemble(name, family, letter, state, path)

    family = FAMILIES[prefix].of(letter)
    side = family.pixels.side or GRID * family.patch
    mean, std = ("/".join(f"{value:.3g}" for value in values) for values in (family.pixels.mean, family.pixels.std))
    build.__doc__ = f"{family.title}, timm's {family.architecture}, at {side} px, mean {mean}, std {std}."
    return build


def _published(name: str, family: Family, letter: str) -> Path:
    """Return the downloaded file; Failure that names the official one."""
    file = family.file.format(letter)
    source: Any = get_pretrained_cfg(family.network) if "." in family.network else None
    if family.server:
        source = SimpleNamespace(hf_hub_id="", hf_hub_filename=None, url=f"{family.server}{file}")
    try:
        return fetch(source)
    except OSError as error:
        file = file or source.url.rpartition("/")[2] or "model.safetensors"
        where = f" of {source.hf_hub_id}" if source is not None and file == "model.safetensors" else ""
        raise Failure(
            f"teacher {name}: its weights could not be downloaded ({first_line(error)}); get the official file {file}"
            f"{where} and give it: --teacher-weights {file}"
        ) from error


for _prefix, _family in FAMILIES.items():
    for _letter in _family.letters:
        teacher(f"{_prefix}-vit-{_letter}")(_builder(_prefix, _letter))
