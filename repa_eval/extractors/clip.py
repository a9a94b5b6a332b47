"""CLIP ViT-L/14 at 336 px, image embeddings, as CMMD takes them (sayakpaul/cmmd-pytorch, google-research/cmmd)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from repa_eval.extractors.shared.resize import as_rgb
from repa_eval.interfaces.extractor import Extractor, extractor
from repa_eval.interfaces.pixel_statistics import CLIP_MEAN, CLIP_STD

SIDE, WIDTH = 336, 768
NAME = "vit_large_patch14_clip_quickgelu_336"


def pixels(images: Tensor) -> Tensor:
    """Return what CLIP reads: floats in [0, 1] to 336x336, bicubic, no antialiasing, no clamping; CLIP's statistics."""
    x = as_rgb(images, "clip").float() / 255.0
    x = F.interpolate(x, size=(SIDE, SIDE), mode="bicubic", align_corners=False)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (x - mean) / std


@extractor("clip")
def clip(weights: Path | None) -> Extractor:
    """CLIP ViT-L/14 at 336 px, projected image embeddings (CMMD)."""
    import timm

    from repa_eval.extractors.shared.timm_extractor import VisionJudge, load_weights

    network = timm.create_model(NAME, num_classes=WIDTH, weight_init="skip")
    load_weights("clip", network, f"{NAME}.openai", weights, "open_clip_model.safetensors", r"logit_scale|text")
    return VisionJudge("clip", network, pixels, "bicubic-336")
