"""From uint8 images to what a network reads: the REPA trainer's own way per family, and timm's for any other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from repa_eval.errors import UserError
from repa_eval.interfaces.images import to_signed
from repa_eval.interfaces.pixel_statistics import IMAGENET_MEAN, IMAGENET_STD
from repa_eval.models.shared.idle_feed_forward import PixelConfig

REPA_SIDE = 256  # the resolution for which `OfficialPixels.side` is stated


@dataclass(frozen=True, kw_only=True)
class OfficialPixels:
    """Preprocessing of one family in the REPA trainer (`preprocess_raw_image`): no crop, no antialias, no clamping.

    side: what an image of 256 px is resized to (bicubic), twice that at 512 px; None: not resized.
    resize_first: resize, then normalise (CLIP); the others the other way round. resolutions: sides that are read.
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    side: int | None = None
    resize_first: bool = False
    resolutions: tuple[int, ...] = (REPA_SIDE,)

    def __call__(self, images: Tensor, *, name: str = "of this family") -> Tensor:
        """Return float32 (B, 3, S, S) from uint8 (B, 3, R, R); UserError, naming teacher `name`, for any other R."""
        channels, height, width = images.shape[1:]
        if channels != 3 or height != width or height not in self.resolutions:
            allowed = " or ".join(f"{side}x{side}" for side in self.resolutions)
            hint = "; at 512x512 only DINOv2 is used" if height == width == 512 else ""
            raise UserError(f"teacher {name} reads RGB images of {allowed}, not {channels}x{height}x{width}{hint}")
        x = _unit(images)
        if self.side is None:
            return _normalise(x, self.mean, self.std)
        size = self.side * (height // REPA_SIDE)
        if self.resize_first:
            return _normalise(_bicubic(x, size), self.mean, self.std)
        return _bicubic(_normalise(x, self.mean, self.std), size)


@dataclass(frozen=True, kw_only=True)
class WholeImage:
    """Preprocessing for any other timm network: the WHOLE image to its input size, then its own normalisation.

    size: (height, width). mode: "bicubic", "bilinear" or "nearest". As in timm's evaluation the resizing is
    antialiased; its centre crop is left out, so that the tokens cover the image that the student sees.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]
    mode: str = "bicubic"

    def __call__(self, images: Tensor, *, name: str = "of timm") -> Tensor:
        """Return float32 (B, C, *size) from uint8 (B, C, H, W) of any size; UserError for another C."""
        if images.shape[1] != len(self.mean):
            given = "x".join(map(str, images.shape[1:]))
            raise UserError(f"teacher {name} reads images of {len(self.mean)} channels, not {given}")
        x = F.interpolate(_unit(images), size=self.size, mode=self.mode, antialias=self.mode != "nearest")
        return _normalise(x, self.mean, self.std)


@dataclass(frozen=True, kw_only=True)
class SignedImage:
    """Preprocessing of networks that read the images as they are, in [-1, 1]. shape: (C, S, S) of the images."""

    shape: tuple[int, int, int]

    def __call__(self, images: Tensor, *, name: str = "of this kind") -> Tensor:
        """Return float32 (B, *shape) from uint8 (B, *shape); UserError for another shape."""
        if tuple(images.shape[1:]) != self.shape:
            given, wanted = ("x".join(map(str, shape)) for shape in (images.shape[1:], self.shape))
            raise UserError(f"teacher {name} reads {wanted} images, not {given}")
        return to_signed(images)


Pixels = OfficialPixels | WholeImage | SignedImage


def pixels_of(config: Any) -> Pixels:
    """Return the preprocessing that an encoder's config records (PixelConfig)."""
    record, side = config.pixels, config.input_size
    if record.rule == "signed":
        return SignedImage(shape=(config.in_channels, side, side))
    colours = {"mean": record.mean, "std": record.std}
    if record.rule == "whole":
        return WholeImage(size=(side, side), mode=record.mode, **colours)
    # OfficialPixels states its side for images of REPA_SIDE
    resized = None if side == record.resolution else side * REPA_SIDE // record.resolution
    first = record.rule == "official-resize-first"
    return OfficialPixels(side=resized, resize_first=first, resolutions=(record.resolution,), **colours)


def recorded(pixels: Pixels, *, resolution: int) -> PixelConfig:
    """Return the record of a preprocessing as it is for images of `resolution` px."""
    if isinstance(pixels, SignedImage):
        return PixelConfig(rule="signed")
    if isinstance(pixels, WholeImage):
        return PixelConfig(rule="whole", mean=pixels.mean, std=pixels.std, mode=pixels.mode)
    rule = "official-resize-first" if pixels.resize_first else "official"
    return PixelConfig(rule=rule, mean=pixels.mean, std=pixels.std, resolution=resolution)


def _unit(images: Tensor) -> Tensor:
    assert images.dtype == torch.uint8, f"images are uint8, not {images.dtype}"
    return images / 255.0


def _normalise(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    shift, scale = (torch.tensor(values, dtype=x.dtype, device=x.device).view(-1, 1, 1) for values in (mean, std))
    return (x - shift) / scale


def _bicubic(x: Tensor, size: int) -> Tensor:
    return F.interpolate(x, size=size, mode="bicubic", align_corners=False, antialias=False)
