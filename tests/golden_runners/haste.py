"""HASTE's teacher: DINOv2 with attention logits, and its preprocessing. (Its models: haste_models.py.)"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import timm
import torch

from golden_runners import Arrays, Case, runner
from golden_runners.fill import fill_values
from repa_eval.teachers.official import FAMILIES, assemble


@runner("haste", "dinov2_attn")
def dinov2_attn(case: Case, arrays: Arrays) -> Arrays:
    config = case["config"]
    sizes = {key: config[key] for key in ("embed_dim", "depth", "num_heads", "mlp_ratio", "init_values")}
    registers = {"reg_tokens": count} if (count := config.get("num_register_tokens", 0)) else {}
    name = "dinov2reg" if registers else "dinov2"
    sizes |= {"patch_size": config["patch_size"], **registers}
    family = dataclasses.replace(FAMILIES[name], patch=config["patch_size"], arguments={"s": sizes})
    # the release has timm's names and one more
    network = family.network.format("small").partition(".")[0]
    named = timm.create_model(network, num_classes=0, img_size=config["img_size"], **sizes)
    release = fill_values(named.state_dict() | {"mask_token": torch.empty(1, config["embed_dim"])})
    teacher = assemble(f"{name}-vit-s", family, "s", release, Path("release.pth")).freeze()
    layers = range(1, config["depth"] + 1)
    with torch.no_grad(), teacher.attention(layers) as logits:
        tokens = teacher.tokens(torch.from_numpy(arrays["image"]))
    assert tokens.cls is not None
    return {
        "x_norm_patchtokens": tokens.patches.numpy(),
        "x_norm_clstoken": tokens.cls.numpy(),
        "attn_act": torch.stack([logits[layer] for layer in layers]).numpy(),
    }


@runner("haste", "teacher_preprocess")
def teacher_preprocess(case: Case, arrays: Arrays) -> Arrays:
    pixels = FAMILIES[case["config"]["enc_type"]].pixels(torch.from_numpy(arrays["image"]))
    return {
        "pixels_sub": pixels[:, :, ::7, ::7].numpy(),
        "pixels_mean": pixels.mean((2, 3)).numpy(),
        "pixels_std": pixels.std((2, 3)).numpy(),
    }
