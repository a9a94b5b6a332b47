"""DINOv2 ViT-L/14 as dgm-eval uses it for FD-DINOv2 (Stein et al. 2023, arXiv 2306.04675): the class token, 1024-d."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repa_eval.extractors.shared.resize import as_rgb, resized_uint8
from repa_eval.interfaces.extractor import Extractor, extractor
from repa_eval.interfaces.pixel_statistics import IMAGENET_MEAN, IMAGENET_STD

SIDE, GRID = 224, 16
TABLE_SIDE = 518  # of the published position table: 37 x 37
OFFSET = 0.1  # DINOv2's own, against a floor that falls one short
NAME = "vit_large_patch14_dinov2"


class ClassToken(nn.Module):
    """A timm ViT that gives the class token after its last norm."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, D) of preprocessed pixels (B, 3, 224, 224)."""
        tokens: Tensor = self.network.forward_features(x)
        return tokens[:, 0]


def pixels(images: Tensor) -> Tensor:
    """Return what DINOv2 reads: the WHOLE image to 224x224 by Pillow's 8-bit bicubic rule, ImageNet's statistics."""
    x = resized_uint8(as_rgb(images, "dinov2"), SIDE).float() / 255.0
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (x - mean) / std


@torch.no_grad()
def fit_positions(network: Any) -> None:
    """Resample the position table (1, 1 + 37^2, D) to the grid of 224 px as DINOv2 does: bicubic, by scale factor."""
    table = network.pos_embed.detach()
    side = int((table.shape[1] - 1) ** 0.5)
    cls, patches = table[:, :1], table[:, 1:]
    grid = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scale = (GRID + OFFSET) / side
    grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic", align_corners=False)
    network.patch_embed.set_input_size((SIDE, SIDE))
    resampled = torch.cat([cls, grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
    network.pos_embed = nn.Parameter(resampled, requires_grad=False)


@extractor("dinov2")
def dinov2(weights: Path | None) -> Extractor:
    """DINOv2 ViT-L/14, class token, images squashed to 224x224 (FD-DINOv2)."""
    import timm

    from repa_eval.extractors.shared.timm_extractor import VisionJudge, load_weights

    network = timm.create_model(NAME, num_classes=0, img_size=TABLE_SIDE, weight_init="skip")
    load_weights("dinov2", network, f"{NAME}.lvd142m", weights, "dinov2_vitl14_pretrain.pth", r"mask_token|head\.")
    fit_positions(network)
    return VisionJudge("dinov2", ClassToken(network), pixels, "pil-bicubic-uint8-224")
