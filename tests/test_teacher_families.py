"""Teachers of iREPA: what each reads and gives, against values written out; files under every library's names."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from teacher_examples import CLOSE, DEPTH, HEADS, WIDTH, OpenClip, State, image, saved, shrink, vit
from torch import Tensor

from helpers import ROOT
from repa_eval.errors import Failure, UserError
from repa_eval.interfaces.teacher import Teacher, load_teacher
from repa_eval.teachers import official

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
# name -> mean and deviation that the encoder was trained with, side that it reads of an image of 256 px, patch, width
FACTS: dict[str, tuple[Any, int, int, int]] = {
    "dinov2-vit-s": (IMAGENET, 224, 14, 384),
    "dinov2-vit-g": (IMAGENET, 224, 14, 1536),
    "dinov2reg-vit-l": (IMAGENET, 224, 14, 1024),
    "dinov3-vit-s16": (IMAGENET, 256, 16, 384),
    "dinov3-vit-b16": (IMAGENET, 256, 16, 768),
    "dinov3-vit-h16plus": (IMAGENET, 256, 16, 1280),
    "siglip2-vit-b": (HALF, 256, 16, 768),
    "siglip2-vit-so400m": (HALF, 256, 16, 1152),
    "siglip2-vit-g": (HALF, 256, 16, 1536),
    "pe-vit-b": (HALF, 256, 16, 768),
    "pe-vit-l": (HALF, 224, 14, 1024),
    "langpe-vit-l": (HALF, 224, 14, 1024),
    "spatialpe-vit-b": (HALF, 256, 16, 768),
    "spatialpe-vit-g": (HALF, 224, 14, 1536),
    "webssl-vit-dino300m_full2b_224": (IMAGENET, 224, 14, 1024),
    "webssl-vit-dino1b_full2b_224": (IMAGENET, 224, 14, 1536),
    "mocov3-vit-b": (IMAGENET, 256, 16, 768),
    "mae-vit-l": (IMAGENET, 256, 16, 1024),
    "jepa-vit-h": (IMAGENET, 224, 14, 1280),
    "clip-vit-L": (OPENAI, 224, 14, 1024),
}


@pytest.mark.parametrize("name", FACTS)
def test_each_encoder_reads_pixels_of_its_own_scale_and_size(name: str) -> None:
    (mean, std), side, patch, width = FACTS[name]
    prefix, _, letter = name.partition("-vit-")
    family = official.FAMILIES[prefix].of(letter)
    pixels = torch.stack([torch.zeros(3, 256, 256), torch.full((3, 256, 256), 255)]).to(torch.uint8)
    found = family.pixels(pixels)
    assert found.shape == (2, 3, side, side)
    for black_or_white, values in zip((0.0, 1.0), found, strict=True):
        for channel in range(3):
            wanted = torch.full((side, side), (black_or_white - mean[channel]) / std[channel])
            torch.testing.assert_close(values[channel], wanted, atol=1e-5, rtol=1e-5)
    assert (side // patch) ** 2 == 256  # as many tokens as the student's latents have
    with torch.device("meta"):
        network = official.network_of(family, letter, {})
    assert (network.num_features, tuple(network.patch_embed.patch_size)) == (width, (patch, patch))


def test_the_docs_table_is_what_is_built() -> None:
    table = (ROOT / "docs" / "teachers.md").read_text(encoding="utf-8")
    shown = {}
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            shown |= {name: (int(cells[2]), int(cells[3]), cells[4], cells[5]) for name in re.findall("`(.*?)`", line)}
    scales = {IMAGENET: "ImageNet's", HALF: "0.5, 0.5", OPENAI: "CLIP's"}
    built_as = {}
    for prefix, every in official.FAMILIES.items():
        for letter in every.letters:
            family = every.of(letter)
            scale = scales[family.pixels.mean, family.pixels.std]
            norm = "after" if family.last_norm else "before"
            built_as[f"{prefix}-vit-{letter}"] = (family.patch, family.pixels.side or 256, scale, norm)
    assert shown == built_as


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)


def random_state(network: Any) -> State:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(tensor.shape, generator=generator) * 0.1 + float("norm" in name and name.endswith("weight"))
        for name, tensor in network.state_dict().items()
    }


def built(architecture: str, **more: Any) -> tuple[Any, State]:
    """timm's network, small, and random weights for it."""
    sizes: dict[str, Any] = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "num_classes": 0}
    network = timm.create_model(architecture, **{**sizes, **more}).eval()
    state = random_state(network)
    network.load_state_dict(state)
    return network, state


ARCHITECTURES: dict[str, tuple[str, dict[str, Any], int]] = {
    "dinov3-vit-s16": ("vit_small_patch16_dinov3", {"qkv_bias": True}, 5),
    "dinov3-vit-h16plus": ("vit_huge_plus_patch16_dinov3", {}, 5),
    "siglip2-vit-b": ("vit_base_patch16_siglip_256", {}, 0),
    "pe-vit-b": ("vit_pe_core_base_patch16_224", {"img_size": 256, "ref_feat_shape": (16, 16)}, 1),
    "spatialpe-vit-b": ("vit_pe_spatial_base_patch16_512", {"img_size": 256, "ref_feat_shape": (16, 16)}, 1),
}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_patch_tokens_are_timms_without_those_before_them(name: str, tmp_path: Path) -> None:
    architecture, arguments, prefix = ARCHITECTURES[name]
    network, state = built(architecture, **arguments)
    teacher = load_teacher(name, saved(state, tmp_path / "own.pth"))
    (mean, std), _, _, _ = FACTS[name]
    x = (image() / 255.0 - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    tokens = teacher(image())
    wanted = network.forward_features(x)
    assert tokens.patches.shape == (1, 256, WIDTH)
    torch.testing.assert_close(tokens.patches, wanted[:, prefix:], **CLOSE)
    assert (tokens.cls is None) == (prefix == 0)


@pytest.mark.usefixtures("small")
@torch.no_grad()
def test_dinov3_reads_512_px_and_others_refuse(tmp_path: Path) -> None:
    network, state = built("vit_small_patch16_dinov3")
    teacher = load_teacher("dinov3-vit-s16", saved(state, tmp_path / "own.pth"))
    pixels = official.FAMILIES["dinov3"].pixels(image(512))
    torch.testing.assert_close(teacher(image(512)).patches, network.forward_features(pixels)[:, 5:], **CLOSE)


@pytest.mark.usefixtures("small")
def test_the_perception_encoders_table_is_resampled_as_its_own_code_does(tmp_path: Path) -> None:
    network, state = built("vit_pe_core_base_patch16_224")  # a table of 14x14 and the class token
    teacher: Any = load_teacher("pe-vit-b", saved(state, tmp_path / "pe.pth"))
    table = state["pos_embed"]
    places = table[:, 1:].reshape(1, 14, 14, WIDTH).permute(0, 3, 1, 2)
    places = F.interpolate(places, size=(16, 16), mode="bilinear", align_corners=False)
    wanted = torch.cat([table[:, :1], places.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
    torch.testing.assert_close(teacher.network.pos_embed, wanted)
    # rotary positions count patches from 1 whatever the grid is
    rotary = teacher.network.rope.get_embed().reshape(16, 16, -1)
    torch.testing.assert_close(rotary[:14, :14], network.rope.get_embed().reshape(14, 14, -1))


@pytest.mark.usefixtures("small")
def test_the_perception_encoders_own_file_is_the_same_teacher(tmp_path: Path) -> None:
    _, state = built("vit_pe_core_base_patch16_224", qkv_bias=True)
    wanted = load_teacher("pe-vit-b", saved(state, tmp_path / "timm.pth"))
    names = {
        r"^cls_token": "class_embedding",
        r"^pos_embed": "positional_embedding",
        r"^patch_embed\.proj": "conv1",
        r"^norm_pre": "ln_pre",
        r"^norm\.": "ln_post.",
        r"^blocks": "transformer.resblocks",
        r"\.norm(\d)": r".ln_\1",
        r"attn\.qkv\.": "attn.in_proj_",
        r"attn\.proj": "attn.out_proj",
        r"mlp\.fc1": "mlp.c_fc",
        r"mlp\.fc2": "mlp.c_proj",
    }
    tower = {name: tensor for name, tensor in state.items() if not name.startswith("attn_pool.")}
    own = {f"visual.{name}": tensor for name, tensor in fields(tower, names).items()}
    own["visual.class_embedding"] = own["visual.class_embedding"][0, 0]
    own["visual.positional_embedding"] = own["visual.positional_embedding"][0]
    own |= {"visual.attn_pool.probe": torch.ones(1, 1, WIDTH), "visual.proj": torch.ones(WIDTH, 8)}
    own |= {"transformer.resblocks.0.ln_1.weight": torch.ones(2), "logit_scale": torch.ones(())}
    assert load_teacher("pe-vit-b", saved(own, tmp_path / "pe.pt")).digest == wanted.digest


# --- the same weights under the names of others


def fields(state: State, names: dict[str, str]) -> State:
    """The state dict with parts of its names replaced."""
    found = {}
    for name, tensor in state.items():
        for old, new in names.items():
            name = re.sub(old, new, name)
        found[name] = tensor
    return found


def split(state: State, where: str, parts: tuple[str, str, str]) -> State:
    """Queries, keys and values apart."""
    found: State = {}
    for name, tensor in state.items():
        if ".attn.qkv." not in name:
            found[name] = tensor
            continue
        for part, value in zip(parts, tensor.chunk(3), strict=True):
            found[name.replace("attn.qkv", f"{where}.{part}")] = value.contiguous()
    return found


def vit_of_transformers(state: State) -> State:
    names = {
        r"^cls_token": "vit.embeddings.cls_token",
        r"^pos_embed": "vit.embeddings.position_embeddings",
        r"^patch_embed\.proj": "vit.embeddings.patch_embeddings.projection",
        r"attn\.proj": "attention.output.dense",
        r"mlp\.fc1": "intermediate.dense",
        r"mlp\.fc2": "output.dense",
        r"norm1": "layernorm_before",
        r"norm2": "layernorm_after",
        r"^norm\.": "vit.layernorm.",
        r"^blocks\.": "vit.encoder.layer.",
    }
    own = fields(split(state, "attention.attention", ("query", "key", "value")), names)
    return own | {"decoder.mask_token": torch.ones(1, 1, 2)}


def dinov2_of_transformers(state: State) -> State:
    names = {
        r"^(cls_token|register_tokens|mask_token)": r"embeddings.\1",
        r"^pos_embed": "embeddings.position_embeddings",
        r"^patch_embed\.proj": "embeddings.patch_embeddings.projection",
        r"attn\.proj": "attention.output.dense",
        r"mlp\.w12": "mlp.weights_in",
        r"mlp\.w3": "mlp.weights_out",
        r"ls(\d)\.gamma": r"layer_scale\1.lambda1",
        r"^norm\.": "layernorm.",
        r"^blocks\.": "encoder.layer.",
    }
    return fields(split(state, "attention.attention", ("query", "key", "value")), names)


def dinov3_of_transformers(state: State) -> State:
    names = {
        r"^cls_token": "embeddings.cls_token",
        r"^reg_token": "embeddings.register_tokens",
        r"^patch_embed\.proj": "embeddings.patch_embeddings",
        r"attn\.proj": "attention.o_proj",
        r"attn\.([qv])_bias": r"attention.\1_proj.bias",
        r"mlp\.fc1": "mlp.up_proj",
        r"mlp\.fc2": "mlp.down_proj",
        r"gamma_(\d)": r"layer_scale\1.lambda1",
        r"^blocks\.": "layer.",
    }
    own = fields(split(state, "attention", ("q_proj", "k_proj", "v_proj")), names)
    return own | {"embeddings.mask_token": torch.ones(1, 1, WIDTH)}


def dinov3_of_release(state: State) -> State:
    own = fields(state, {r"^reg_token": "storage_tokens", r"gamma_(\d)": r"ls\1.gamma"})
    for i in range(DEPTH):
        q, v = own.pop(f"blocks.{i}.attn.q_bias"), own.pop(f"blocks.{i}.attn.v_bias")
        own[f"blocks.{i}.attn.qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
        own[f"blocks.{i}.attn.qkv.bias_mask"] = torch.ones(3 * WIDTH)
    return own | {"mask_token": torch.ones(1, WIDTH), "rope_embed.periods": torch.ones(2)}


def siglip_of_transformers(state: State) -> State:
    names = {
        r"^pos_embed": "vision_model.embeddings.position_embedding.weight",
        r"^patch_embed\.proj": "vision_model.embeddings.patch_embedding",
        r"attn\.proj": "self_attn.out_proj",
        r"norm([12])": r"layer_norm\1",
        r"^norm\.": "vision_model.post_layernorm.",
        r"^blocks\.": "vision_model.encoder.layers.",
    }
    tower = {name: tensor for name, tensor in state.items() if not name.startswith("attn_pool.")}
    own = fields(split(tower, "self_attn", ("q_proj", "k_proj", "v_proj")), names)
    position = own["vision_model.embeddings.position_embedding.weight"]
    own["vision_model.embeddings.position_embedding.weight"] = position[0].contiguous()
    return own | {"vision_model.head.probe": torch.ones(1, 1, WIDTH), "text_model.embeddings.x": torch.ones(2)}


def in_chunks(state: State) -> dict[str, Any]:
    """As DINOv2's trainer saves it: the blocks in chunks, under the teacher's backbone."""
    named = {re.sub(r"^blocks\.", "blocks.0.", name): tensor for name, tensor in state.items()}
    return {"teacher": {f"backbone.{name}": tensor for name, tensor in named.items()} | {"dino_head.x": torch.ones(2)}}


def by_onnx(state: State) -> State:
    """As an export leaves it: the matrices transposed, numbered in the order in which they compute."""
    found, number = {}, 900
    for name, tensor in state.items():
        if re.search(r"\.(qkv|proj|fc1|fc2)\.weight$", name) and tensor.ndim == 2:
            continue
        found[f"model.{name}"] = tensor
    for i in range(DEPTH):
        for linear in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            number += 13
            found[f"onnx::MatMul_{number}"] = state[f"blocks.{i}.{linear}.weight"].T.contiguous()
    return found


def dinov3() -> State:
    return built("vit_small_patch16_dinov3", qkv_bias=True)[1]


def siglip() -> State:
    return built("vit_base_patch16_siglip_256")[1]


FORMS: dict[str, tuple[str, Callable[[], State], Callable[[State], Any]]] = {
    "MAE by transformers": ("mae-vit-b", lambda: vit(patch=16, rows=50), vit_of_transformers),
    "I-JEPA by transformers": ("jepa-vit-h", lambda: vit(patch=14, rows=49), vit_of_transformers),
    "DINOv2 by transformers": ("dinov2-vit-b", lambda: vit(patch=14, rows=26, dinov2=True), dinov2_of_transformers),
    "DINOv2-g by transformers": (
        "dinov2-vit-g",
        lambda: vit(patch=14, rows=26, dinov2=True, glu=64),
        dinov2_of_transformers,
    ),
    "DINOv2 with registers by transformers": (
        "dinov2reg-vit-l",
        lambda: vit(patch=14, rows=26, dinov2=True, registers=4),
        dinov2_of_transformers,
    ),
    "DINOv2 in chunks": ("dinov2-vit-b", lambda: vit(patch=14, rows=26, dinov2=True), in_chunks),
    "DINOv3 by transformers": ("dinov3-vit-s16", dinov3, dinov3_of_transformers),
    "DINOv3 as released": ("dinov3-vit-s16", dinov3, dinov3_of_release),
    "SigLIP 2 by transformers": ("siglip2-vit-b", siglip, siglip_of_transformers),
    "MoCo v3 by ONNX": ("mocov3-vit-b", lambda: vit(patch=16, rows=50), by_onnx),
    "a ViT of timm by ONNX": (
        "timm:vit_small_patch16_224",
        lambda: built("vit_small_patch16_224", embed_dim=384, num_heads=6)[1],
        by_onnx,
    ),
}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("form", FORMS)
def test_the_names_of_other_libraries_are_the_same_teacher(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, state_of, renamed = FORMS[form]
    if name.startswith("timm:"):
        create = timm.create_model
        monkeypatch.setattr(timm, "create_model", lambda *given, **more: create(*given, **{"depth": DEPTH, **more}))
    state = state_of()
    wanted: Teacher = load_teacher(name, saved(state, tmp_path / "own.pth"))
    content = renamed(dict(state))
    assert not set(content) >= set(state), "the test changed no name"
    if all(isinstance(value, Tensor) for value in content.values()):
        save_file(content, tmp_path / "model.safetensors")
        assert load_teacher(name, tmp_path / "model.safetensors").digest == wanted.digest
    assert load_teacher(name, saved(content, tmp_path / "other.pth")).digest == wanted.digest


@pytest.mark.usefixtures("small")
def test_clip_by_transformers_in_a_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tower = OpenClip().state_dict()
    wanted = load_teacher("clip-vit-L", saved({f"visual.{name}": t for name, t in tower.items()}, tmp_path / "a.pt"))
    names = {
        r"^class_embedding": "embeddings.class_embedding",
        r"^positional_embedding": "embeddings.position_embedding.weight",
        r"^conv1": "embeddings.patch_embedding",
        r"^ln_pre": "pre_layrnorm",
        r"^ln_post": "post_layernorm",
        r"^transformer\.resblocks": "encoder.layers",
        r"\.ln_(\d)": r".layer_norm\1",
        r"attn\.out_proj": "self_attn.out_proj",
        r"mlp\.c_fc": "mlp.fc1",
        r"mlp\.c_proj": "mlp.fc2",
    }
    own: State = {}
    for name, tensor in fields({name: t for name, t in tower.items() if name != "proj"}, names).items():
        if joined := re.fullmatch(r"(.*)\.attn\.in_proj_(weight|bias)", name):
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                own[f"{joined[1]}.self_attn.{letter}_proj.{joined[2]}"] = part.contiguous()
        else:
            own[name] = tensor
    content = {f"vision_model.{name}": tensor for name, tensor in own.items()}
    content |= {"text_model.final_layer_norm.weight": torch.ones(3), "logit_scale": torch.ones(())}
    (tmp_path / "clip").mkdir()
    with pytest.raises(UserError, match=r"is a folder without model\.safetensors or pytorch_model\.bin"):
        load_teacher("clip-vit-L", tmp_path / "clip")
    save_file(content, tmp_path / "clip" / "model.safetensors")
    assert load_teacher("clip-vit-L", tmp_path / "clip").digest == wanted.digest


@pytest.mark.usefixtures("small")
def test_what_is_missing_under_other_names_is_named(tmp_path: Path) -> None:
    state = dinov2_of_transformers(vit(patch=14, rows=26, dinov2=True))
    del state["encoder.layer.1.norm2.bias"]
    with pytest.raises(Failure, match=r"missing: blocks\.1\.norm2\.bias") as caught:
        load_teacher("dinov2-vit-b", saved(state, tmp_path / "a.pth"))
    assert "\n" not in str(caught.value)
    matrices = by_onnx(vit(patch=16, rows=50))
    matrices.pop("onnx::MatMul_926")
    with pytest.raises(Failure, match=r"7 matrices that an ONNX export left without names .*cannot be told"):
        load_teacher("mocov3-vit-b", saved(matrices, tmp_path / "b.pth"))


@pytest.mark.usefixtures("small")
def test_web_ssl_is_built_as_wide_as_its_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for letter, glu in {"dino1b_full2b_224": 64, "dino5b_full2b_224": 65}.items():  # 65: no ratio gives it exactly
        name = f"webssl-vit-{letter}"
        state = vit(patch=14, rows=257, dinov2=True, glu=glu)
        teacher: Any = load_teacher(name, saved(state, tmp_path / f"{letter}.pth"))
        assert tuple(teacher.network.blocks[0].mlp.fc1.weight.shape) == (2 * glu, WIDTH)
        assert teacher(image()).patches.shape == (1, 256, WIDTH)


def test_a_convolutional_teacher_gives_its_last_map_row_by_row(tmp_path: Path) -> None:
    network = timm.create_model("test_resnet").eval()
    teacher = load_teacher("timm:test_resnet", saved(network.state_dict(), tmp_path / "resnet.pth"))
    tokens = teacher(image(160))
    with torch.no_grad():
        wanted = network.forward_features(teacher.pixels(image(160)))
    assert tokens.patches.shape == (1, 25, wanted.shape[1])
    torch.testing.assert_close(tokens.patches[0, 7], wanted[0, :, 1, 2], **CLOSE)  # row 1, column 2 of 5x5
