"""Resizing by one matrix an axis: the published rules, whose results differ, at the price of two multiplications."""

from __future__ import annotations

import functools

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from repa_eval.errors import UserError


@functools.lru_cache(maxsize=32)
def tf1_bilinear(size: int, target: int) -> Tensor:
    """Return the matrix (target, size) of TensorFlow 1's bilinear rule: no antialiasing, no half-pixel shift."""
    place = torch.arange(target, dtype=torch.float32) * torch.tensor(size / target, dtype=torch.float32)
    low = place.long()
    high, rows = (low + 1).clamp_max(size - 1), torch.arange(target)
    matrix = torch.zeros(target, size)
    matrix[rows, low] = 1.0 - (place - low)
    matrix[rows, high] += place - low
    return matrix


@functools.lru_cache(maxsize=32)
def pil_bicubic(size: int, target: int) -> Tensor:
    """Return the matrix (target, size) of Pillow's antialiased bicubic rule on floats: its resized unit matrix."""
    unit = Image.fromarray(np.eye(size, dtype=np.float32))
    return torch.from_numpy(np.array(unit.resize((size, target), Image.Resampling.BICUBIC)))


RULES = {"tf1-bilinear": tf1_bilinear, "pil-bicubic": pil_bicubic}


def resized(images: Tensor, rule: str, target: int) -> Tensor:
    """Return float32 images (B, C, target, target), within 0..255, of uint8 ones (B, C, H, W), width first."""
    height, width = images.shape[-2:]
    x = images.float()
    if width != target:
        x = x @ RULES[rule](width, target).to(x.device).T
    if height != target:
        x = RULES[rule](height, target).to(x.device) @ x
    return x.clamp_(0.0, 255.0) if rule == "pil-bicubic" else x


def resized_uint8(images: Tensor, target: int) -> Tensor:
    """Return uint8 images (B, C, target, target) as Pillow's bicubic resizing of 8-bit images makes them."""
    if images.shape[-2:] == (target, target):
        return images
    pictures = (Image.fromarray(image) for image in images.permute(0, 2, 3, 1).cpu().numpy())
    arrays = [np.asarray(picture.resize((target, target), Image.Resampling.BICUBIC)) for picture in pictures]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def as_rgb(images: Tensor, name: str) -> Tensor:
    """Return uint8 (B, 3, H, W) images; grey ones are repeated over three channels. UserError for other channels."""
    if images.shape[1] not in (1, 3):
        raise UserError(f"extractor {name} reads grey or RGB images, not such of {images.shape[1]} channels")
    return images.expand(-1, 3, -1, -1)
